"""Sentences into pairs [CLS] a [SEP] b [SEP] as in BERT's pre-training [BERT §A.2]. Pure: lengths in, places out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Tokens [a, a + a_len) and [b, b + b_len) of a shard; `b_len` is 0 where a stands alone."""

    a: int
    a_len: int
    b: int
    b_len: int


Document = tuple[int, Sequence[int]]
"""Where a document begins in its shard, and the lengths of its sentences."""


def pairs(documents: Sequence[Document], limit: int, draw: random.Random) -> Iterator[Place]:
    """Pairs of at most `limit` tokens in the order of the documents, made of whole sentences where these are short.

    Sentences are gathered up to `limit` and parted at random into a and b; for half of the pairs b is instead a stretch
    of another document, and the sentences that it displaced come again as the next pair's a. So every token of every
    document stands once in an a or in the b that goes on with it.
    """
    for index, (offset, document) in enumerate(documents):
        sentences, at = list(_short(document, limit // 2)), 0
        while at < len(sentences):
            count, size = _gather(sentences, at, limit)
            a_count = 1 + int(draw.random() * (count - 1))
            a_len = sum(sentences[at : at + a_count])
            if len(documents) > 1 and (count == 1 or draw.random() < 0.5):
                other = documents[(index + 1 + int(draw.random() * (len(documents) - 1))) % len(documents)]
                yield Place(offset, a_len, *_stretch(other, limit - a_len, draw))
                at, offset = at + a_count, offset + a_len
            else:
                yield Place(offset, a_len, offset + a_len if size > a_len else 0, size - a_len)
                at, offset = at + count, offset + size


def _short(sentences: Sequence[int], limit: int) -> Iterator[int]:
    # A sentence too long to share a pair is cut.
    for length in sentences:
        while length > limit:
            yield limit
            length -= limit
        yield length


def _gather(sentences: Sequence[int], at: int, limit: int) -> tuple[int, int]:
    count = size = 0
    while at + count < len(sentences) and size + sentences[at + count] <= limit:
        size += sentences[at + count]
        count += 1
    return count, size


def _stretch(document: Document, room: int, draw: random.Random) -> tuple[int, int]:
    # Whole sentences from a random one on; the first is cut if it is longer than the room.
    start, sentences = document
    first = int(draw.random() * len(sentences))
    _, size = _gather(sentences, first, room)
    return start + sum(sentences[:first]), size or min(room, sentences[first])
