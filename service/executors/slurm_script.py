"""The batch script of one attempt on a Slurm cluster: a pure function of what is asked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from etd_ds.contract import launch, rundir, spec
from service.settings import SlurmOptions

TOP_PRIORITY = 100
LOST = "lost"
"""What `N.exit` says of an attempt whose ranks were ended by the cluster, not by themselves."""


def comment(job_id: str, attempt: int) -> str:
    """What the Slurm job says of itself, beside its name, which is our id."""
    return f"etd-ds:{job_id}:{attempt}"


def render(
    options: SlurmOptions,
    *,
    runs: Sequence[rundir.RunDir],
    folder: Path,
    job: spec.JobSpec,
    attempt: int,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    priority: int = 0,
    mounts: Sequence[Path] = (),
) -> str:
    """A script for `sbatch`. In `folder` it writes `N.started` (the Slurm id) and at last `N.exit` (the code).

    `runs` are what the trainer carries, `job` the first one's spec; `argv` is one rank's command; `mounts` are the
    folders that a container has to see.
    """
    job_id = runs[0].root.name
    wanted = [
        f"--job-name={job_id}",
        f"--comment={comment(job_id, attempt)}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.gpus}",
        *([] if options.cpu else [f"--gpus-per-node={job.gpus}"]),
        *([f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []),
        *(
            f"--{name}={value}"
            for name, value in (
                ("partition", options.partition),
                ("account", options.account),
                ("qos", options.qos),
                ("constraint", options.constraint),
                ("time", options.time_minutes),
            )
            if value
        ),
        f"--nice={(TOP_PRIORITY - priority) * options.nice_step}",
        f"--signal=USR1@{options.warning}",
        "--no-requeue",
        f"--chdir={cwd}",
        f"--output={_pattern(runs[0].log)}",
        "--open-mode=append",
    ]
    batch = [line for line in options.lines if line.startswith("#SBATCH")]
    shell = [line for line in options.lines if not line.startswith("#SBATCH")]
    container = []
    if options.image:
        pairs = ",".join(f"{path}:{path}" for path in mounts)
        container = [f"--container-image={options.image}", f"--container-mounts={pairs}"]
    task = [options.python, str(options.repository / "service" / "executors" / "slurm_task.py")]
    step = ["srun", "--kill-on-bad-exit=1", *container, *task]
    done = " && ".join(f"[ -e {shlex.quote(str(run.result))} ]" for run in runs)
    here = shlex.quote(str(folder / str(attempt)))
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_quoted(option)}" for option in wanted),
        *batch,
        f"here={here}",
        "# not when a newer attempt was made meanwhile, nor as a second copy of this one",
        f'[ "$(cat {shlex.quote(str(folder / "newest"))})" = {attempt} ] || exit 0',
        '(set -C; echo "$SLURM_JOB_ID" >"$here.started") 2>/dev/null || exit 0',
        f"echo {shlex.quote(launch.ATTEMPT + str(attempt))}",
        "trap : TERM USR1 INT  # the ranks hear it too; this shell stays to write down how they ended",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())),
        *shell,
        f'{shlex.join(step)} "$here" {launch.EXIT_STOPPED} {shlex.join(argv)}',
        "code=$?",
        "# when no rank said why, a node failed (srun then says 0), or Slurm ended or never began the step",
        f"{done} && why=0 || why={LOST}",
        '[ ! -s "$here.first" ] || why=$(cat "$here.first")',
        'echo "$why" >"$here.exit.tmp" && mv "$here.exit.tmp" "$here.exit"',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _quoted(option: str) -> str:
    """As sbatch reads its own lines; it knows double quotes and the backslash."""
    name, _, value = option.partition("=")
    if not value or value.replace("-", "").replace("_", "").isalnum():
        return option
    return name + '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _pattern(path: Path) -> str:
    """A file name in which Slurm is to replace nothing."""
    return str(path).replace("%", "%%")
