import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etd_ds.contract import teachers
from etd_ds.data import encode, splitting, tokenize

TOKENIZER = tokenize.open_tokenizer(teachers.embedded_folder())
ENCODER = encode.Encoder(TOKENIZER)
ODD = [chr(code) for code in (*range(0, 0x250), 0x300, 0x301, 0x3C3, 0x3A3, 0x130, 0x1E9E, 0x200B, 0x2028, 0xFFFD)]


def _plain(sentence: str) -> list[int]:
    return TOKENIZER.encode(sentence, add_special_tokens=False).ids


def _lists(encoder: encode.Encoder, sentences: list[str]) -> list[list[int]]:
    ids, lengths = encoder(sentences)
    assert len(lengths) == len(sentences)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]


@settings(max_examples=300)
@given(st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=80))
@example("[SEP] [MASK]x [CLS]. Ünïcode\u0301 ΟΔΟΣ. 東京タワー don't \x00\x1c\u2028end")
def test_word_by_word_is_the_tokenizer_itself(text: str) -> None:
    sentences = splitting.sentences(text)
    assert _lists(ENCODER, sentences) == [_plain(sentence) for sentence in sentences]
    # Neither splitting nor collapsing changes a token, but where a line break stood inside a cluster of marks.
    if not any(unicodedata.combining(char) for char in text) and text.isprintable():
        assert ENCODER(sentences).ids.tolist() == _plain(text)


def test_real_text_is_encoded_as_by_the_tokenizer(documents) -> None:
    sentences = [sentence for document in documents for sentence in splitting.sentences(document)]
    wanted = [_plain(sentence) for sentence in sentences]
    assert _lists(encode.Encoder(TOKENIZER), sentences) == wanted


def test_forgetting_words_changes_nothing(documents, monkeypatch) -> None:
    monkeypatch.setattr(encode, "_REMEMBERED", 50)
    encoder = encode.Encoder(TOKENIZER)
    for document in documents[:50]:
        sentences = splitting.sentences(document)
        assert _lists(encoder, sentences) == [_plain(sentence) for sentence in sentences]


@pytest.mark.parametrize("change", ["lowercase", "pre_tokenizer", "added"])
def test_other_rules_are_asked_for_whole_sentences(change: str) -> None:
    other = tokenizers.Tokenizer.from_str(TOKENIZER.to_str())
    other.encode_special_tokens = True
    assert encode.splits_at_blanks(other)
    if change == "lowercase":
        other.normalizer = tokenizers.normalizers.Lowercase()
    elif change == "pre_tokenizer":
        other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    else:
        other.add_tokens(["new york"])
    assert not encode.splits_at_blanks(other)
    text = "He saw new york . Twice!"
    assert _lists(encode.Encoder(other), [text]) == [other.encode(text, add_special_tokens=False).ids]
