"""What BERT's pre-training asks of a text, as pure functions of tokens and a generator: MLM masks and NSP pairs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that the loss does not look at."""

T = TypeVar("T")


class Masked(NamedTuple):
    """Input ids with some positions hidden, and the hidden ids as labels, `IGNORED` elsewhere; shaped as the input."""

    ids: Tensor
    labels: Tensor


class Pair(NamedTuple):
    """Two texts; `label` 0: the second follows the first, 1: it was drawn from elsewhere (as Hugging Face counts)."""

    first: object
    second: object
    label: int


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


def nsp(documents: Sequence[Sequence[T]], generator: torch.Generator) -> list[Pair]:
    """One pair for each sentence that has a successor in its document: half go on, half jump elsewhere [BERT §3.1].

    A jump lands on a sentence of another document where there is one, else on any but the sentence and its successor;
    where nothing else exists the pair goes on.
    """
    flat = [sentence for document in documents for sentence in document]
    starts = [0]
    for document in documents:
        starts.append(starts[-1] + len(document))
    pairs = []
    for first, end in itertools.pairwise(starts):
        for here in range(first, end - 1):
            if len(flat) > end - first:
                outside_from, outside_size = end, len(flat) - (end - first)
            else:
                outside_from, outside_size = here + 2, len(flat) - 2
            jump = torch.rand((), generator=generator).item() < 0.5
            offset = int(torch.randint(max(outside_size, 1), (), generator=generator))
            if jump and outside_size > 0:
                pairs.append(Pair(flat[here], flat[(outside_from + offset) % len(flat)], 1))
            else:
                pairs.append(Pair(flat[here], flat[here + 1], 0))
    return pairs
