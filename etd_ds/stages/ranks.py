"""Several processes that score one teacher together: who does what, and how their parts become one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Join the group that `torchrun` describes, if it started this process; leave it at the end."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(dist.get_node_local_rank(fallback_rank=0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part: every `world`-th item."""
    return items[rank() :: world()]


def total(tensors: Iterable[Tensor]) -> None:
    """Sum each tensor over all processes, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def first_says(value: bool, device: torch.device) -> bool:
    """What the first process thinks, known to all. Also a meeting point: nobody leaves before it has spoken."""
    if world() == 1:
        return value
    said = torch.tensor([int(value)], device=device)
    dist.broadcast(said, src=0)
    return bool(said.item())
