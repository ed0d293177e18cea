"""Texts as rows and batches."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.contract import teachers
from etd_ds.data import tokenize
from etd_ds.evaluate import encoding
from etd_ds.evaluate.examples import Labelled


def test_rows_are_what_the_stock_tokenizer_makes() -> None:
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(teachers.embedded_folder())
    ours = tokenize.open_tokenizer(teachers.embedded_folder())
    texts = [
        ("A short one.", "Another, rather longer text – with a dash."),
        ("x " * 40, "y z " * 40),
        ("é", "word " * 60),
    ]
    for limit in (16, 17, 512):
        rows = encoding.labelled(ours, [Labelled(a, b, 0) for a, b in texts], limit)
        for row, (a, b) in zip(rows, texts, strict=True):
            wanted = stock(a, b, truncation="longest_first", max_length=limit, padding=False)
            assert len(row.ids_S) == len(wanted["input_ids"])
            if limit == 512:
                assert row.ids_S.tolist() == wanted["input_ids"]
                assert row.types_S.tolist() == wanted["token_type_ids"]
        singles = encoding.labelled(ours, [Labelled(a, None, 0) for a, _ in texts], limit)
        for row, (a, _) in zip(singles, texts, strict=True):
            assert row.ids_S.tolist() == stock(a, truncation=True, max_length=limit, padding=False)["input_ids"]


def test_the_longer_text_loses_its_end_token_by_token() -> None:
    for a, b, room in itertools.product(range(16), range(16), range(1, 16)):
        x, y = a, b
        while x + y > room:
            if x > y:
                x -= 1
            else:
                y -= 1
        assert encoding._fitting(a, b, room) == (x, y)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int) -> None:
    found = encoding.batches(lengths, batch_size, torch.Generator().manual_seed(seed))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert len(found) == -(-len(lengths) // batch_size)
    assert found == encoding.batches(lengths, batch_size, torch.Generator().manual_seed(seed))


def test_padding_is_masked() -> None:
    rows = [encoding.Row.of([5, 6], [7]), encoding.Row.of([8], [])]
    ids_BS, mask_BS, types_BS = encoding.pad(rows, 0)
    assert ids_BS.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask_BS.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert types_BS.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert ids_BS.dtype == torch.int64
    assert np.asarray(rows[0].types_S).dtype == np.int64
