"""The processes of one run: joining, waiting for rank 0's work, agreeing, leaving. Time-outs are bounded everywhere."""

from __future__ import annotations

import datetime
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from etd_ds.contract import errors
from etd_ds.engine import adam
from etd_ds.engine.config import Hardware
from etd_ds.kernels import half

# A peer that is silent for so long is gone: torch's own default is half an hour. A cut link is known within a minute.
TIMEOUT = datetime.timedelta(seconds=50)
# So long ranks may come after each other in starting: one machine may have all libraries to read over a network.
START = datetime.timedelta(minutes=10)
# So long rank 0 waits for the others to have heard its verdict.
PARTING = datetime.timedelta(seconds=20)
# And so many seconds the others wait for rank 0 to end first when its verdict is an error.
LAST_WORDS = 10.0


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def lead(self, name: str, work: Callable[[], Any]) -> Any:
        """Rank 0 does `work`, however long it takes; all get its JSON-ready result, or its `EtdError`.

        The others wait at the rendezvous store, not in a collective, so the time-out of collectives does not count.
        """
        store = dist.distributed_c10d._get_default_store()
        if self.first:
            verdict: dict[str, Any] = {"error": {"message": "rank 0 crashed"}}
            try:
                verdict = {"ok": work()}
            except errors.EtdError as error:
                verdict = {"error": error.as_dict()}
                raise
            finally:
                # this rank may end right after, and the store with it: the others must have heard
                store.set(name, json.dumps(verdict))
                _wait(lambda: store.add(f"{name} heard", 0) >= self.world_size - 1, PARTING)
            return verdict["ok"]
        _wait(lambda: store.check([name]), None)
        verdict = json.loads(store.get(name))
        store.add(f"{name} heard", 1)
        if "error" in verdict:
            # a launcher ends all ranks with the first: let that be rank 0, after it has said what is wrong
            time.sleep(LAST_WORDS)
            raise errors.EtdError(verdict["error"]["message"])
        return verdict["ok"]

    def meet(self, name: str) -> None:
        """Wait until all ranks are here, however long that takes: at the store, as in `lead`."""
        store = dist.distributed_c10d._get_default_store()
        store.add(f"{name} met", 1)
        _wait(lambda: store.add(f"{name} met", 0) >= self.world_size, None)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _wait(condition: Callable[[], bool], limit: datetime.timedelta | None) -> None:
    until = None if limit is None else time.monotonic() + limit.total_seconds()
    while not condition() and (until is None or time.monotonic() < until):
        time.sleep(0.02)


def hardware() -> Hardware:
    """What this machine can compute in."""
    if not torch.cuda.is_available():
        return Hardware("cpu", bf16=True, fp16=False, compiler=adam.compiled())
    # half-precision arithmetic came with compute capability 5.3, but is of use from tensor cores on
    return Hardware(
        "cuda",
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        fp16=torch.cuda.get_device_capability() >= (7, 0),
        compiler=adam.compiled() or adam.compilable(),
        triton=half.triton(),
    )


def join() -> Ranks:
    """Meet the other ranks. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say who and where."""
    import deepspeed

    # DeepSpeed calls names that torch 2.13 has renamed: nothing that a user could change
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    _bound_further_groups(TIMEOUT)
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise errors.HardwareError(
                f"gpus: this machine has {torch.cuda.device_count()} GPUs, rank {local_rank} has none",
                field="gpus",
                wanted=torch.cuda.device_count(),
                got=local_rank + 1,
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # an inference-only op that DeepSpeed would compile for a minute before the first collective
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=START, auto_mpi_discovery=False, verbose=False)
    dist.distributed_c10d._set_pg_timeout(TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)


def wait_for_compilers() -> None:
    """Let collectives wait as long as a start may take: torch.compile works in the first passes, on one machine for
    minutes and on another, whose cache has everything, not at all."""
    _bound_further_groups(START)
    dist.distributed_c10d._set_pg_timeout(START)


def _bound_further_groups(limit: datetime.timedelta) -> None:
    """DeepSpeed makes groups of its own for ZeRO's collectives: these take a default, of which NCCL has its own."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(dist.distributed_c10d, name, limit)


def is_loss_of_peers(error: BaseException) -> bool:
    """Whether a collective or the rendezvous failed because another rank is gone or out of reach."""
    said = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in said or "NCCL" in said or "Connection closed by peer" in said)
    )


def leave(ranks: Ranks) -> None:
    """Part from the other ranks; nothing collective may follow."""
    # rank 0 keeps the rendezvous store: nobody may still be reading there when it ends
    ranks.barrier()
    dist.destroy_process_group()
