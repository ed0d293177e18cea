"""The Slurm executor against commands that say what the test wants: what a real cluster does too rarely to wait for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from etd_ds.contract import launch, rundir, spec
from service.executors import slurm
from service.settings import Settings, SlurmOptions
from service.status import Seen

COMMANDS = {
    # each call is noted; `squeue` prints $FAKE/queue, or fails with $FAKE/away
    "squeue": """[ ! -e "$FAKE/away" ] || { cat "$FAKE/away" >&2; exit 1; }; cat "$FAKE/queue" """,
    "sbatch": """cat >"$FAKE/script"; [ ! -e "$FAKE/refuse" ] || { cat "$FAKE/refuse" >&2; exit 1; }; echo "7;lab" """,
    "scancel": "",
}


class Fake:
    """A cluster of three scripts, and the executor that calls them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.queue()
        settings = Settings(data_dir=root / "data", cache=root / "cache", slurm=SlurmOptions(poll=0.0, settle=0.0))
        settings.prepare()
        self.settings = settings
        self.executor = slurm.SlurmExecutor(settings)

    def job(self, name: str = "job-1") -> rundir.RunDir:
        run = rundir.RunDir(self.settings.runs / name)
        rundir.publish_json(run.job, spec.JobSpec(layers=2, hidden=192))
        return run

    def queue(self, *rows: str) -> None:
        (self.root / "queue").write_text("".join(f"{row}\n" for row in rows))

    def calls(self, command: str) -> list[str]:
        said = (self.root / "calls").read_text().splitlines() if (self.root / "calls").exists() else []
        return [line for line in said if line.split()[0] == command]

    def file(self, name: str) -> Path:
        return self.settings.runs / "job-1" / "slurm" / name


def row(state: str, *, number: int = 7, attempt: int = 1, job: str = "job-1", reason: str = "None") -> str:
    return f"{number}|{state}|{reason}|n1|{job}|etd-ds:{job}:{attempt}"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in COMMANDS.items():
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $@" >>"$FAKE/calls"\n{body}\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("FAKE", str(tmp_path))
    made = Fake(tmp_path)
    made.job()
    return made


def test_what_was_never_handed_in_is_to_be_started(fake):
    assert fake.executor.look("job-1", 1) == Seen()


def test_it_is_handed_in_once_and_kept_by_its_number(fake):
    fake.executor.start(["job-1"], 1, ())
    fake.queue(row("PENDING", reason="Resources"))
    fake.executor.start(["job-1"], 1, ())
    assert len(fake.calls("sbatch")) == 1
    assert fake.file("1.id").read_text() == "7\n"
    assert (fake.root / "script").read_text() == fake.file("1.sh").read_text()
    assert fake.executor.look("job-1", 1) == Seen(started=True, alive=True)
    assert '"state": "PENDING"' in fake.file("state.json").read_text()


@pytest.mark.parametrize(
    "state", ["PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "NEW STATE"]
)
def test_whatever_is_no_end_is_alive(fake, state):
    fake.executor.start(["job-1"], 1, ())
    fake.queue(row(state))
    assert fake.executor.look("job-1", 1).alive


@pytest.mark.parametrize(
    "state", ["FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "PREEMPTED", "COMPLETED"]
)
def test_an_end_without_a_record_is_a_loss_that_names_the_state(fake, state):
    fake.executor.start(["job-1"], 1, ())
    fake.queue(row(state))
    assert fake.executor.look("job-1", 1) == Seen(started=True, words=f"Slurm says {state} of its job 7.")


def test_what_the_files_say_of_the_end_counts(fake):
    fake.executor.start(["job-1"], 1, ())
    fake.file("1.exit").write_text("1\n")
    fake.queue(row("COMPLETED"))
    assert fake.executor.look("job-1", 1).exit_code == 1
    rundir.RunDir(fake.settings.runs / "job-1").result.touch()
    fake.queue(row("FAILED"))
    assert fake.executor.look("job-1", 1).result


@pytest.mark.parametrize(
    "said", ["slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "Socket timed out", "Munge"]
)
def test_while_slurm_is_away_nothing_is_lost_and_nothing_is_started(fake, said):
    fake.executor.start(["job-1"], 1, ())
    (fake.root / "away").write_text(said)
    assert fake.executor.look("job-1", 1) == Seen(started=True, alive=True)
    assert '"state": "UNKNOWN"' in fake.file("state.json").read_text()
    fake.job("job-2")
    fake.executor.start(["job-2"], 1, ())
    fake.executor.stop("job-1", 1)
    assert len(fake.calls("sbatch")) == 1
    assert fake.calls("scancel") == []


def test_a_job_with_a_result_succeeds_while_slurm_is_away(fake):
    fake.executor.start(["job-1"], 1, ())
    (fake.root / "away").write_text("Unable to contact")
    fake.file("1.exit").write_text("0\n")
    rundir.RunDir(fake.settings.runs / "job-1").result.touch()
    assert fake.executor.look("job-1", 1) == Seen(True, False, 0, True)


def test_a_script_without_an_answer_may_still_show_up(fake, monkeypatch):
    (fake.root / "refuse").write_text("sbatch: error: Batch job submission failed: Socket timed out on send/recv")
    fake.executor.start(["job-1"], 1, ())
    assert not fake.file("1.id").exists()
    assert fake.executor.look("job-1", 1).alive
    fake.queue(row("RUNNING", number=9))
    assert fake.executor.look("job-1", 1).alive
    assert fake.file("1.id").read_text() == "9\n", "it is ours by its comment"
    fake.queue()
    fake.file("1.id").unlink()
    monkeypatch.setattr(slurm, "_LIMBO", 0.0)
    assert fake.executor.look("job-1", 1) == Seen(), "it did not, so it is to be started"


def test_a_refusal_is_told_in_slurms_words(fake):
    (fake.root / "refuse").write_text("sbatch: error: Batch job submission failed: Invalid qos specification\n")
    fake.executor.start(["job-1"], 1, ())
    seen = fake.executor.look("job-1", 1)
    assert seen.refused
    assert seen.words == "The cluster refused it: Batch job submission failed: Invalid qos specification"
    assert not fake.executor.look("job-1", 2).refused, "another attempt may be tried"


def test_a_number_that_went_to_somebody_else_is_not_ours(fake):
    fake.executor.start(["job-1"], 1, ())
    fake.queue("7|RUNNING|None|n1|job-1|other", row("RUNNING", number=8, attempt=2), row("RUNNING", job="job-2"))
    assert not fake.executor.look("job-1", 1).alive


def test_an_attempt_that_stopped_before_it_saved_counts_as_lost(fake):
    fake.executor.start(["job-1"], 1, ())
    fake.file("1.started").write_text("7\n")
    fake.file("1.exit").write_text(f"{launch.EXIT_STOPPED}\n")
    latest = rundir.RunDir(fake.settings.runs / "job-1").checkpoints / "latest.json"
    assert fake.executor.look("job-1", 1) == Seen(started=True)
    rundir.publish_json(latest, {"step": 1})
    os.utime(latest, (1, 1))
    assert fake.executor.look("job-1", 1).exit_code is None, "that is an older attempt's"
    os.utime(latest)
    assert fake.executor.look("job-1", 1).exit_code == launch.EXIT_STOPPED


def test_many_jobs_are_seen_with_one_look(fake):
    fake.executor._options = SlurmOptions(poll=60.0, settle=0.0)
    names = [f"job-{number}" for number in range(20)]
    for name in names:
        fake.job(name)
        (fake.settings.runs / name / "slurm").mkdir()
        (fake.settings.runs / name / "slurm" / "1.sh").touch()
    fake.queue(*(row("RUNNING", number=number, job=name) for number, name in enumerate(names)))
    assert all(fake.executor.look(name, 1).alive for name in names)
    assert len(fake.calls("squeue")) == 1


def test_other_jobs_of_the_user_may_have_any_name(fake):
    fake.executor.start(["job-1"], 1, ())
    (fake.root / "queue").write_bytes(row("RUNNING").encode() + b"\n8|RUNNING|None|n1|\xe9t\xe9|\n")
    assert fake.executor.look("job-1", 1) == Seen(started=True, alive=True)


def test_stopping_asks_the_ranks_and_then_the_cluster(fake):
    fake.executor.start(["job-1"], 1, ())
    fake.queue(row("PENDING"))
    fake.executor.stop("job-1", 1)
    fake.queue(row("RUNNING"))
    fake.executor._signal_again.clear()
    fake.executor.stop("job-1", 1)
    fake.file("1.stop").write_text("0.0")
    fake.executor._signal_again.clear()
    fake.executor.stop("job-1", 1)
    assert fake.calls("scancel") == [
        "scancel --quiet --state=PENDING 7",
        "scancel --quiet --signal=TERM 7",
        "scancel --quiet 7",
    ]
