"""What BERT's pre-training hides of a text (MLM), as a pure function of tokens and a generator."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that the loss does not look at."""


class Masked(NamedTuple):
    """Input ids with some positions hidden, and the hidden ids as labels, `IGNORED` elsewhere; shaped as the input."""

    ids: Tensor
    labels: Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all numbers of `key`, so that item i's draw does not depend on its batch."""
    seed = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def mlm(
    ids: Tensor,
    generator: torch.Generator,
    *,
    mask_id: int,
    vocab: int,
    special: Collection[int],
    share: float = 0.15,
) -> Masked:
    """Hide each ordinary token with probability `share`: 80 % as [MASK], 10 % as a random id, 10 % left [BERT §3.1].

    `ids` is int64 of any shape; ids in `special` are never chosen. The draw uses `ids.numel()` numbers whatever the
    ids are, so equal generators hide equal positions.
    """
    chance = torch.rand(ids.shape, generator=generator)
    kind = torch.rand(ids.shape, generator=generator)
    other = torch.randint(vocab, ids.shape, generator=generator)
    chance, kind, other = chance.to(ids.device), kind.to(ids.device), other.to(ids.device)
    ordinary = ~torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))
    chosen = (chance < share) & ordinary
    masked = torch.where(chosen & (kind < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(chosen & (kind >= 0.9), other, masked)
    return Masked(masked, torch.where(chosen, ids, torch.full_like(ids, IGNORED)))
