"""Attempts as jobs of a Slurm cluster. They, like the run folders, need nothing of this server to go on.

State is in the job's `slurm` folder, on a disk that all nodes see. Per attempt N: `N.sh` what was handed in, `N.id`
Slurm's number for it, `N.stop` since when it is asked to leave, `N.refused` why Slurm would not take it; and by the
script `N.started`, `N.first` (the first failing rank's code) and `N.exit`. `newest` names the one attempt that may
start; `state.json` is Slurm's view, for people. How an attempt ended the files say, whatever Slurm says; whether
it lives, Slurm says, except that one with a result is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from etd_ds.contract import cluster, launch, rundir
from service.executors import slurm_commands as commands
from service.executors.slurm_script import LOST, comment, render
from service.settings import Settings
from service.status import Seen

log = logging.getLogger("etd_jobs")

_LIMBO = 30.0
"""Seconds within which a script that was handed in without an answer may still show up."""

_Key = tuple[str, int]


class SlurmExecutor:
    """Submits by our id and attempt, finds by them, and sees all attempts with one `squeue`. Used by one thread."""

    def __init__(self, settings: Settings) -> None:
        assert settings.slurm is not None
        self._settings = settings
        self._options = settings.slurm
        self._listed: dict[str, commands.Entry] | None = None
        self._look_again = 0.0
        self._gone: dict[_Key, float] = {}
        self._signal_again: dict[_Key, float] = {}
        self._said: dict[str, str] = {}

    def start(self, jobs: Sequence[str], attempt: int, slots: tuple[int, ...], priority: int = 0) -> None:
        """Hand in the attempt's script, unless Slurm has it already. While Slurm is away nothing happens."""
        if self._listed is None and time.monotonic() < self._look_again:
            return
        job_id = jobs[0]
        folder = self._folder(job_id)
        self._look_again = 0.0
        listed = self._list()
        if listed is None:
            return
        found = listed.get(comment(job_id, attempt))
        if found is not None and not found.ended:
            self._keep(folder, attempt, found.id)
            return
        folder.mkdir(exist_ok=True)
        # only then the old attempts' scripts, should one still wait somewhere, are refused at their first line
        rundir.publish_bytes(folder / "newest", f"{attempt}\n".encode())
        script = self._script(jobs, attempt, priority)
        rundir.publish_bytes(folder / f"{attempt}.sh", script.encode())
        try:
            number = commands.submit(script)
        except commands.Away as away:
            log.warning("%s was perhaps not handed in: %s", job_id, away)
            return
        except commands.Refused as refused:
            rundir.publish_bytes(folder / f"{attempt}.refused", str(refused).encode())
            return
        self._keep(folder, attempt, number)
        self._gone.pop((job_id, attempt), None)
        self._look_again = 0.0

    def hold(self, job_id: str, attempt: int, since: float) -> None:
        """A cluster needs no leash: Slurm runs a job once, and its script no older attempt."""

    def look(self, job_id: str, attempt: int) -> Seen:
        """What files and cluster say. `alive` as long as the attempt may live: an unknown state is never its end."""
        folder = self._folder(job_id)
        run = rundir.RunDir(folder.parent)
        if refusal := _text(folder / f"{attempt}.refused"):
            return Seen(refused=True, words=f"The cluster refused it: {refusal}")
        if not (folder / f"{attempt}.sh").exists():
            return Seen()
        ended = (folder / f"{attempt}.exit").exists()
        # without a result the script may have ended before all ranks have been killed: that is Slurm's to say
        if not (ended and run.result.exists()):
            listed = self._list()
            entry = None if listed is None else listed.get(comment(job_id, attempt))
            self._tell(folder, attempt, entry, known=listed is not None)
            if listed is None or (entry is not None and not entry.ended):
                return Seen(started=True, alive=True)
            if not ended and not self._is_over(job_id, attempt, folder):
                return Seen(started=True, alive=True)
        # what the script wrote before it ended is there to be read by now
        entry = (self._listed or {}).get(comment(job_id, attempt))
        started = ended or entry is not None or (folder / f"{attempt}.started").exists()
        words = f"Slurm says {entry.state} of its job {entry.id}." if entry is not None and entry.ended else ""
        return Seen(started, False, self._exit_code(run, attempt), run.result.exists(), words=words)

    def stop(self, job_id: str, attempt: int) -> None:
        """SIGTERM to the ranks, again at every poll; after the grace the job is cancelled, which kills."""
        folder, key = self._folder(job_id), (job_id, attempt)
        asked = folder / f"{attempt}.stop"
        if not asked.exists():
            rundir.publish_bytes(asked, str(time.time()).encode())
        entry = (self._list() or {}).get(comment(job_id, attempt))
        if entry is None or entry.ended or time.monotonic() < self._signal_again.get(key, 0.0):
            return
        self._signal_again[key] = time.monotonic() + max(1.0, self._options.poll)
        try:
            if entry.state == "PENDING":
                commands.withdraw(entry.id)
            elif time.time() - float(asked.read_text()) > self._settings.grace:
                commands.kill(entry.id)
            else:
                commands.terminate(entry.id)
        except commands.Away as away:
            log.warning("%s cannot be stopped now: %s", job_id, away)

    # ---- what Slurm says

    def _list(self) -> dict[str, commands.Entry] | None:
        """Our jobs by their comment, at most `poll` seconds old; none while Slurm is away."""
        if time.monotonic() < self._look_again:
            return self._listed
        try:
            entries = commands.mine()
        except commands.Away as away:
            if self._listed is not None or self._look_again == 0.0:
                log.warning("Slurm is away, so its jobs' states are unknown: %s", away)
            self._listed = None
        else:
            # of two with one comment the one that is not over counts
            self._listed = {
                entry.comment: entry
                for entry in sorted(entries, key=lambda entry: (not entry.ended, entry.id))
                if entry.comment.startswith(f"etd-ds:{entry.name}:")
            }
        self._look_again = time.monotonic() + self._options.poll
        return self._listed

    def _is_over(self, job_id: str, attempt: int, folder: Path) -> bool:
        """Whether an attempt that Slurm does not run is surely over: files of its node take a while to be seen."""
        if not (folder / f"{attempt}.id").exists():
            handed_in = (folder / f"{attempt}.sh").stat().st_mtime
            if time.time() - handed_in < _LIMBO:
                return False
        first = self._gone.setdefault((job_id, attempt), time.monotonic())
        return time.monotonic() - first >= self._options.settle

    def _tell(self, folder: Path, attempt: int, entry: commands.Entry | None, *, known: bool) -> None:
        """Write down Slurm's view when it has changed."""
        state = ("UNKNOWN" if not known else "ABSENT") if entry is None else entry.state
        number = int(_text(folder / f"{attempt}.id") or 0) if entry is None else entry.id
        view = {"attempt": attempt, "id": number, "state": state, "reason": "", "nodes": ""}
        if entry is not None:
            self._keep(folder, attempt, entry.id)
            view |= {"reason": "" if entry.reason == "None" else entry.reason, "nodes": entry.nodes}
        if self._said.get(folder.parent.name) != str(view):
            rundir.publish_json(folder / "state.json", view)
            self._said[folder.parent.name] = str(view)

    # ---- what the files say

    def _exit_code(self, run: rundir.RunDir, attempt: int) -> int | None:
        """The trainer's exit code; none if the attempt is lost.

        So is one that was stopped before it saved anything, or it could go on for ever: a time limit that is shorter
        than a trainer's start-up would stop every attempt like that.
        """
        text = _text(self._folder(run.root.name) / f"{attempt}.exit")
        if not text or text == LOST:
            return None
        code = int(text)
        return None if code == launch.EXIT_STOPPED and not self._saved(run, attempt) else code

    def _saved(self, run: rundir.RunDir, attempt: int) -> bool:
        try:
            saved = (run.checkpoints / "latest.json").stat().st_mtime
            return saved >= (self._folder(run.root.name) / f"{attempt}.started").stat().st_mtime
        except FileNotFoundError:
            return False

    def _keep(self, folder: Path, attempt: int, number: int) -> None:
        handle = folder / f"{attempt}.id"
        if _text(handle) != str(number):
            rundir.publish_bytes(handle, f"{number}\n".encode())

    def _folder(self, job_id: str) -> Path:
        return self._settings.runs / job_id / "slurm"

    def _script(self, jobs: Sequence[str], attempt: int, priority: int) -> str:
        settings, options = self._settings, self._options
        run, *others = runs = [rundir.RunDir(settings.runs / one) for one in jobs]
        job = run.read_job()
        if settings.trainer_command:
            roots = [str(one.root) for one in runs]
            argv = [*settings.trainer_command, "--run", *roots, "--cache", str(settings.cache)]
        else:
            argv = cluster.rank_argv(
                run,
                job,
                cache=settings.cache,
                python=options.python,
                repository=options.repository,
                together=others,
            )
        return render(
            options,
            runs=runs,
            folder=self._folder(jobs[0]),
            job=job,
            attempt=attempt,
            argv=argv,
            env=launch.train_env(cpu=options.cpu, threads_per_rank=options.cpus_per_task or 1),
            cwd=settings.nowhere,
            priority=priority,
            mounts=(settings.data_dir, settings.cache),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
