"""Real trainer processes for tests: forked from a server that has imported everything, so that a launch takes a second.

`Fatal` moments let a test kill a rank with SIGKILL at an exact place, also in the middle of a save.
"""

import datetime
import multiprocessing
import os
import signal
import socket
from pathlib import Path

SPEC = {
    "layers": 2,
    "hidden": 24,
    "mode": "rand",
    "seq_length": 32,
    "batch_size": 8,
    "micro_batch_size": 2,
    "steps": 8,
    "validation_sequences": 6,
    "checkpoint_every": 3,
    "validate_every": 4,
    "log_every": 1,
    "learning_rate": 1e-3,
    "dropout": 0.1,
}
CONFIGS = Path(__file__).parents[2] / "ds_configs"
PRELOAD = ["torch", "deepspeed", "etd_ds.stages.distill", "etd_ds.train"]


def _context():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start(
    run: Path | list[Path] | None, *, cache: Path, config: Path, world_size: int = 2, fatal: str | None = None, extra=()
):
    """Start the ranks of one attempt; they are multiprocessing processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = ["--deepspeed", str(config), "--cache", str(cache), *extra]
    if run is not None:
        argv += ["--run", *map(str, run if isinstance(run, list) else [run])]
    env = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = _context()
    ranks = [context.Process(target=_rank, args=(argv, env, rank, fatal)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    return ranks


def finish(ranks, timeout=120.0) -> list[int]:
    """Exit codes of all ranks. As a launcher does: once one fails the others are ended too."""
    from multiprocessing.connection import wait

    left = list(ranks)
    while left:
        ready = wait([process.sentinel for process in left], timeout)
        assert ready, "the trainer hangs"
        for process in [process for process in left if process.sentinel in ready]:
            process.join()
            left.remove(process)
            if process.exitcode not in (0, 85):
                for other in left:
                    other.kill()
    return [process.exitcode for process in ranks]


def train(run: Path | list[Path] | None, **options) -> list[int]:
    """One attempt, to its exit codes."""
    return finish(start(run, **options))


def _rank(argv, env, rank, fatal):
    from etd_ds import train

    os.environ |= {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    if fatal is not None and (rank == 0 or fatal in ("fp16", "impatient")):
        _arm(fatal)
    os._exit(train.main(argv))


def _pretend_fp16() -> None:
    """DeepSpeed refuses fp16 on CPU although torch computes it: the whole path can be run all the same."""
    from deepspeed.accelerator import get_accelerator

    from etd_ds.engine import config, ranks
    from etd_ds.stages import distill

    type(get_accelerator()).is_fp16_supported = lambda self: True
    distill.hardware = ranks.hardware = lambda: config.Hardware("cpu", bf16=True, fp16=True)


def _hang() -> None:
    """The first forward pass never ends, and the watchdog has little patience."""
    from etd_ds.distill import loop
    from etd_ds.engine import runtime

    loop.FIRST_STEP = 1.0
    runtime.Engine.__call__ = lambda *_: signal.pause()


def _arm(moment: str) -> None:
    """`fp16` lets this CPU train in it, `hang` hangs in the first step, `impatient` waits 5 s for its peers.

    `step N` dies when its event is written, `state N`, `rename N` and `pointer N` within the save of checkpoint N.
    """
    from etd_ds.contract import events, rundir
    from etd_ds.engine import checkpoint

    if moment == "fp16":
        return _pretend_fp16()
    if moment == "hang":
        return _hang()
    if moment == "impatient":
        from etd_ds.engine import ranks

        ranks.TIMEOUT = datetime.timedelta(seconds=5)
        return None
    kind, number = moment.split()

    def die(*_args, **_options):
        os.kill(os.getpid(), signal.SIGKILL)

    def before(module, name, condition):
        whole = getattr(module, name)

        def dying(*args, **options):
            if condition(*args):
                die()
            return whole(*args, **options)

        setattr(module, name, dying)

    if kind == "step":
        whole_append = events.append

        def append(path, event):
            whole_append(path, event)
            if isinstance(event, events.Step) and event.step == int(number):
                die()

        events.append = append
    elif kind == "state":  # the tensors are half on disk
        whole_save = checkpoint.safetensors.torch.save_file

        def save_file(state, path):
            whole_save(state, path)
            if f"{int(number):08d}" in str(path):
                os.truncate(path, Path(path).stat().st_size // 2)
                die()

        checkpoint.safetensors.torch.save_file = save_file
    elif kind == "rename":
        before(rundir, "fsync_path", lambda path: path.name.startswith(f".step-{int(number):08d}"))
    elif kind == "pointer":
        before(rundir, "publish_json", lambda path, value: value == {"name": f"step-{int(number):08d}"})
    else:
        raise ValueError(moment)
