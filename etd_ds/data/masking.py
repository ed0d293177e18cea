"""What BERT's pre-training makes of a text, as pure functions of it and a generator: hidden tokens, pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that the loss does not look at."""


Sentence = TypeVar("Sentence")


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


class Pairs(NamedTuple, Generic[Sentence]):
    """For next-sentence prediction: X firsts, X seconds, their labels, and the sentences that have no partner."""

    firsts: list[Sentence]
    seconds: list[Sentence]
    labels: list[int]
    """0: the second goes on from the first; 1: it comes from another pair."""
    alone: list[Sentence]


def nsp(documents: Sequence[Sequence[Sentence]], generator: torch.Generator) -> Pairs[Sentence]:
    """Sentences 2i and 2i+1 of each document as a pair; half of the pairs exchange their seconds [BERT §3.1].

    Every sentence is used once: the last one of a document with an odd number of them is alone. The seconds of the
    exchanging pairs move on by half of these pairs, so that they leave their document unless it is most of the text.
    """
    firsts: list[Sentence] = []
    seconds: list[Sentence] = []
    alone: list[Sentence] = []
    for document in documents:
        even = len(document) - len(document) % 2
        firsts += document[:even:2]
        seconds += document[1:even:2]
        alone += document[even:]
    jumps = (torch.rand(len(seconds), generator=generator) < 0.5).nonzero().flatten().tolist()
    jumps = jumps if len(jumps) > 1 else []
    half = len(jumps) // 2
    moved = [seconds[there] for there in [*jumps[half:], *jumps[:half]]]
    for here, second in zip(jumps, moved, strict=True):
        seconds[here] = second
    jumping = set(jumps)
    return Pairs(firsts, seconds, [int(i in jumping) for i in range(len(seconds))], alone)
