"""Sentences into token ids, at several times the tokenizer's own speed where its rules allow it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import tokenizers

_REMEMBERED = 200_000
"""Words whose ids are kept, about 50 MB; a running text repeats its words."""


class Encoder:
    """Token ids of sentences, without special tokens: `tokenizer.encode_batch_fast`, remembered word by word.

    BERT's own rules never look across a blank, so the ids of a sentence are those of its blank-separated words. A
    tokenizer with other rules is asked for whole sentences instead. The result is the same.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._by_word = splits_at_blanks(tokenizer)
        self._words: dict[str, list[int]] = {}

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        """Ids of each sentence; blanks are the only whitespace in them."""
        if not self._by_word:
            return self._ask(sentences)
        split = [sentence.split(" ") for sentence in sentences]
        known = self._words
        if new := list(set(itertools.chain.from_iterable(split)).difference(known)):
            if len(known) + len(new) > _REMEMBERED:
                known.clear()
                new = list(set(itertools.chain.from_iterable(split)))
            known.update(zip(new, self._ask(new), strict=True))
        return [list(itertools.chain.from_iterable(map(known.__getitem__, words))) for words in split]

    def _ask(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def splits_at_blanks(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a text's ids are those of its blank-separated words, one after another."""
    rules = json.loads(tokenizer.to_str())
    kinds = [(rules[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    return (
        kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and tokenizer.encode_special_tokens
        and all(token["special"] for token in rules["added_tokens"])
    )
