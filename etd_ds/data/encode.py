"""Sentences into token ids, at several times the tokenizer's own speed where its rules allow it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

_REMEMBERED = 200_000
"""Words whose ids are kept, about 30 MB; a running text repeats its words."""


class Encoded(NamedTuple):
    """Token ids (uint32) of sentences one after another, and how many each has (int64)."""

    ids: np.ndarray
    lengths: np.ndarray


class Encoder:
    """Token ids of sentences, without special tokens: `tokenizer.encode_batch_fast`, remembered word by word.

    BERT's own rules never look across a blank, so the ids of a sentence are those of its blank-separated words. A
    tokenizer with other rules is asked for whole sentences instead. The result is the same.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._by_word = splits_at_blanks(tokenizer)
        self._forget()

    def __call__(self, sentences: Sequence[str]) -> Encoded:
        """Ids of non-empty sentences in which blanks are the only whitespace."""
        if not self._by_word or not sentences:
            return self._ask(sentences)
        if len(self._numbers) > _REMEMBERED:
            self._forget()
        words = " ".join(sentences).split(" ")
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        self._learn()
        sizes = self._known.lengths[numbers]
        ends = np.cumsum(sizes)
        # Token i of the text is token i - (start of its word in the text) of that word.
        shift = np.repeat(self._starts[numbers] - (ends - sizes), sizes)
        counts = np.fromiter((sentence.count(" ") + 1 for sentence in sentences), np.int64, len(sentences))
        lengths = np.add.reduceat(sizes, np.cumsum(counts) - counts)
        return Encoded(self._known.ids[shift + np.arange(len(shift))], lengths)

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._known = self._ask([])
        self._starts = np.empty(0, np.int64)

    def _learn(self) -> None:
        if not self._numbers.new:
            return
        asked = self._ask(self._numbers.new)
        self._numbers.new.clear()
        self._known = Encoded(*map(np.concatenate, zip(self._known, asked, strict=True)))
        self._starts = np.cumsum(self._known.lengths) - self._known.lengths

    def _ask(self, texts: Sequence[str]) -> Encoded:
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return Encoded(np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths)


class _Numbers(dict[str, int]):
    """Words by the order of their first look-up; `new` gathers those not yet tokenized."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number


def splits_at_blanks(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a text's ids are those of its blank-separated words, one after another."""
    rules = json.loads(tokenizer.to_str())
    kinds = [(rules[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    return (
        kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and tokenizer.encode_special_tokens
        and all(token["special"] for token in rules["added_tokens"])
    )
