"""The trainer: distills the student of a run folder, on as many ranks as it is started with.

    deepspeed etd_ds/train.py --deepspeed ds_configs/zero2.json --run RUN_DIR
    deepspeed etd_ds/train.py --deepspeed ds_configs/zero2.json \\
        --student INIT_DIR --out RUN_DIR --teacher embedded --corpus text.txt --steps 1000

Started again on the same folder it continues. Exit codes: 0 the student is there, 2 the spec or the folder cannot work,
85 stopped on request after a checkpoint, 86 other ranks are gone or out of reach; anything else is a crash.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# ruff: noqa: E402

STARTED = time.monotonic()
if __name__ == "__main__":
    # Run as a script, this folder comes first on the path, and there `import kernels` would find ours.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import ctypes
import signal
import traceback

from etd_ds.contract import cluster, errors, events, flags, launch, rundir
from etd_ds.distill.stopping import Stop, Stopped
from etd_ds.stages import folder
from etd_ds.stages.attempt import Attempt

EXIT_CRASH = 1
LAST_WORDS = 5.0
"""Seconds in which a launcher surely notices that another rank has died."""


def main(argv: list[str] | None = None) -> int:
    """One rank of the trainer, to its exit code."""
    _environment()
    rank, stop = int(os.environ["RANK"]), Stop()
    args = _parse(argv, quiet=rank > 0)
    attempts: list[Attempt] = []
    try:
        stop.listen()
        runs = [rundir.RunDir(path.resolve()) for path in args.run or [args.out]]
        if args.out is not None and rank == 0:  # also over a finished run, which is no answer to other settings
            folder.lay(runs[0], student=args.student, given=flags.given(args))
        left = [run for run in runs if run.read_result() is None]
        if rank == 0:
            for run in left:
                run.read_job()  # what is no run folder stays untouched
                attempts.append(Attempt(run))
        if left:
            _train(left, args, stop, attempts)
        for run in runs:
            _tell(rank, f"{run.student} is ready" if run in left else f"{run.result} is there: this run is finished")
        return launch.EXIT_DONE
    except Stopped as stopped:
        stop.at_once = False
        _tell(rank, f"{stopped}; the same command continues")
        _end(attempts, events.End(outcome="stopped", step=stopped.step, message=str(stopped)))
        return launch.EXIT_STOPPED
    except errors.EtdError as error:
        stop.at_once = False
        # what one rank finds, all find: one of them says it
        if rank == 0 or isinstance(error, errors.HardwareError):
            _tell(0, str(error))
        _end(attempts, events.End(outcome="failed", step=stop.step, code=error.code, message=str(error)))
        return launch.EXIT_BAD_INPUT
    except Exception as error:
        stop.at_once = False
        traceback.print_exc()
        lost = _lost_peers(error)
        code = "peers_lost" if lost else "crash"
        _end(attempts, events.End(outcome="failed", step=stop.step, code=code, message=_summary(error)))
        if lost:
            _let_others_go_first(stop)
        return launch.EXIT_PEERS_LOST if lost else EXIT_CRASH


def _train(runs: list[rundir.RunDir], args: argparse.Namespace, stop: Stop, attempts: list[Attempt]) -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    from etd_ds.engine import ranks
    from etd_ds.stages import distill
    from etd_ds.stages.seat import Seat

    world_size = int(os.environ["WORLD_SIZE"])
    if attempts:
        # rank 0 finds what is wrong before it meets the others: none of them ends, and has it ended, before it spoke
        distill.check(runs, ds_config=args.ds_config, world_size=world_size)
    joined = ranks.join()
    settings = distill.check(runs, ds_config=args.ds_config, world_size=world_size)
    if settings.job.torch_compile:
        ranks.wait_for_compilers()
    _tell(
        joined.rank,
        f"training on {joined.device.type} with {joined.world_size} rank{'s' * (joined.world_size > 1)} in "
        f"{settings.precision}; start-up took {time.monotonic() - STARTED:.1f} s",
    )
    seats = [Seat(run, attempts[i] if attempts else None) for i, run in enumerate(runs)]
    distill.Trainer(seats, settings, cache=args.cache, ranks=joined, stop=stop).train()


def _parse(argv: list[str] | None, *, quiet: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deepspeed etd_ds/train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--deepspeed", dest="ds_config", type=Path, required=True, metavar="FILE", help="a file of ds_configs/"
    )
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="an extracted run folder: job.json and init/; several share one teacher and every batch",
    )
    parser.add_argument("--student", type=Path, metavar="INIT_DIR", help="without --run: the student to distill")
    parser.add_argument("--out", type=Path, metavar="RUN_DIR", help="without --run: the run folder to make")
    parser.add_argument(
        "--cache", type=Path, default=launch.default_cache(), metavar="DIR", help="of teachers and tokenized corpora"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    flags.add(parser, leave_out=folder.FROM_STUDENT)
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        args = parser.parse_args(argv)
        if args.run is not None and (args.out or args.student or flags.given(args)):
            parser.error("--run takes everything from the folder's job.json; leave out --student, --out and spec flags")
        if args.run is None and not (args.out and args.student):
            parser.error("wanted --run, or --student and --out")
    return args


def _environment() -> None:
    """What a launcher leaves open: a rank alone when there is none, threads, and who ends us."""
    os.environ |= cluster.slurm_env(os.environ)
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(launch.free_port())
    wanted = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in wanted if name not in os.environ]:
        _tell(0, f"RANK is set and {', '.join(missing)} not; a launcher sets all, to go without one unset RANK")
        sys.exit(launch.EXIT_BAD_INPUT)
    # the names that DeepSpeed's launcher and torchrun have for the ranks of this machine
    local = os.environ.get("LOCAL_SIZE")
    beside = int(local or os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // beside)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if local is not None and sys.platform == "linux":
        # DeepSpeed's launcher, killed, would leave its ranks behind: let them hear of it
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(attempts: list[Attempt], event: events.End) -> None:
    for attempt in attempts:
        # the disk may be full, or a newer attempt may hold the folder: the exit code stands either way
        with contextlib.suppress(OSError, errors.RunFolderError):
            attempt.say(event)


def _lost_peers(error: Exception) -> bool:
    ranks = sys.modules.get("etd_ds.engine.ranks")  # before it is imported nobody has peers
    return ranks is not None and ranks.is_loss_of_peers(error)


def _let_others_go_first(stop: Stop) -> None:
    """A rank that died takes this one's connection with it: let the launcher report that one's end, not this one's."""
    until = time.monotonic() + LAST_WORDS
    while time.monotonic() < until and not stop.asked:
        time.sleep(0.05)


def _tell(rank: int, text: str) -> None:
    if rank == 0:
        print(f"etd-ds: {text}", file=sys.stderr, flush=True)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # no teardown: after a crash the process group's threads may wait for peers that are gone
    os._exit(code)
