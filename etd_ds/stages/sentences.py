"""The scored sentences as batches: masked once for all, sorted by length so that no batch has padding."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tokenizers
import torch
from torch import Tensor

from etd_ds.bert import scoring
from etd_ds.contract import errors
from etd_ds.data import masking, tokenize

BATCH_TOKENS = 2048
FIT_ROWS, FIT_LENGTH = 16, 128


@dataclass(frozen=True)
class Text:
    """Tokenized sentences in file order, without special tokens, and what masking needs to know."""

    ids: tuple[Tensor, ...]
    special: tokenize.Special
    vocab: int
    documents: tuple[int, ...]
    """How many of the sentences each document has."""

    def masked(self, ids: Tensor, generator: torch.Generator) -> masking.Masked:
        """15 % of the ordinary tokens hidden."""
        special = self.special
        return masking.mlm(ids, generator, mask_id=special.mask, vocab=self.vocab, special=special.ids)

    def frequency(self) -> Tensor:
        """(V,) how often each token occurs."""
        return torch.bincount(torch.cat(self.ids), minlength=self.vocab)


def digest(sentences: Sequence[str]) -> str:
    """sha256 of the sentences, one a line."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def read(
    sentences: Sequence[str], tokenizer: tokenizers.Tokenizer, vocab: int, documents: Sequence[int] | None = None
) -> Text:
    """Tokenize. `vocab` is the model's vocabulary size. Raises `CorpusError` when nothing is left to read.

    `documents` is how many sentences each document has; without it, all are of one.
    """
    encoded = tokenizer.encode_batch(list(sentences), add_special_tokens=False)
    ids = tuple(torch.tensor(one.ids, dtype=torch.int64) for one in encoded)
    if not any(map(len, ids)):
        raise errors.CorpusError(f"corpus: its first {len(ids)} sentences hold no word that the tokenizer knows of")
    return Text(ids, tokenize.special(tokenizer), vocab, (len(ids),) if documents is None else tuple(documents))


def batches(text: Text, *, positions: int, seed: int, pairs: bool) -> list[scoring.Batch]:
    """All sentences once: equal lengths together, in an order fixed by the text alone.

    With `pairs`, for NSP, they are in pairs; a sentence without a partner in its document stands alone, with no label.

    Masks are drawn over all sentences laid end to end, so they depend on neither batch nor rank.
    """
    if pairs and max(text.documents) < 2:
        raise errors.CorpusError(
            "importance_sentences: wanted at least 2 of one document, since this teacher's loss looks at pairs of "
            f"sentences; got {len(text.ids)} in {len(text.documents)} documents",
            field="importance_sentences",
            wanted=2,
            got=max(text.documents),
        )
    sequences, types, nsp = _paired(text, positions, seed) if pairs else _single(text, text.ids, positions)
    flat_ids = torch.cat(sequences)
    masked = text.masked(flat_ids, masking.generator(seed, 0))
    lengths = [len(one) for one in sequences]
    ids, labels = torch.split(masked.ids, lengths), torch.split(masked.labels, lengths)
    alike: dict[tuple[int, bool], list[int]] = {}
    for i, length in enumerate(lengths):
        alike.setdefault((length, nsp[i] is not None), []).append(i)
    found = []
    for (length, labelled), same in sorted(alike.items()):
        rows = max(1, BATCH_TOKENS // length)
        for first in range(0, len(same), rows):
            chosen = same[first : first + rows]
            found.append(
                scoring.Batch(
                    torch.stack([ids[i] for i in chosen]),
                    torch.stack([types[i] for i in chosen]),
                    torch.stack([labels[i] for i in chosen]),
                    torch.tensor([nsp[i] for i in chosen]) if labelled else None,
                )
            )
    return found


def _single(
    text: Text, sentences: Sequence[Tensor], positions: int
) -> tuple[list[Tensor], list[Tensor], list[int | None]]:
    special = text.special
    cls, sep = torch.tensor([special.cls]), torch.tensor([special.sep])
    sequences = [torch.cat([cls, ids[: positions - 2], sep]) for ids in sentences]
    return sequences, [torch.zeros_like(one) for one in sequences], [None] * len(sequences)


def _paired(text: Text, positions: int, seed: int) -> tuple[list[Tensor], list[Tensor], list[int | None]]:
    """Sentences without a partner alone and without a label, then the pairs: [CLS] a [SEP] b [SEP]."""
    special = text.special
    cls, sep = torch.tensor([special.cls]), torch.tensor([special.sep])
    ends = list(itertools.accumulate(text.documents))
    documents = [text.ids[end - size : end] for end, size in zip(ends, text.documents, strict=True)]
    pairs = masking.nsp(documents, masking.generator(seed, 1))
    sequences, types, nsp = _single(text, pairs.alone, positions)
    room = (positions - 3) // 2
    for first, second in zip(pairs.firsts, pairs.seconds, strict=True):
        a, b = torch.cat([cls, first[:room], sep]), torch.cat([second[:room], sep])
        sequences.append(torch.cat([a, b]))
        types.append(torch.cat([torch.zeros_like(a), torch.ones_like(b)]))
    return sequences, types, [*nsp, *pairs.labels]


def fit_batches(text: Text, *, seed: int, positions: int) -> Iterator[scoring.Batch]:
    """Rows of running text for fitting an MLM head, 16 × 128 tokens a batch, for ever; each pass masks anew."""
    special, length = text.special, min(FIT_LENGTH, positions)
    flat = torch.cat(text.ids)
    inner = length - 2
    flat = flat.repeat(-(-FIT_ROWS * inner // len(flat)))  # a very small text is repeated to fill one batch
    rows = flat[: len(flat) // inner * inner].view(-1, inner)
    step = 0
    while True:
        order = torch.randperm(len(rows), generator=masking.generator(seed, 2, step)).tolist()
        for first in range(0, len(order) - FIT_ROWS + 1, FIT_ROWS):
            ids = torch.nn.functional.pad(rows[order[first : first + FIT_ROWS]], (1, 1))
            ids[:, 0], ids[:, -1] = special.cls, special.sep
            masked = text.masked(ids, masking.generator(seed, 3, step))
            yield scoring.Batch(masked.ids, torch.zeros_like(ids), masked.labels)
            step += 1
