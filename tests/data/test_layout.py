import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.data import packing, pairing


@given(st.lists(st.integers(1, 64), max_size=400))
def test_packing_puts_every_item_into_one_row_and_never_too_much(lengths: list[int]) -> None:
    rows = list(packing.pack(enumerate(lengths), 64))
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in row) <= 64 for row in rows)
    assert rows == list(packing.pack(enumerate(lengths), 64))


def test_packing_fills_rows_and_holds_few_of_them_open() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 64) for _ in range(20_000)]
    seen = 0

    def items() -> itertools.chain[tuple[int, int]]:
        nonlocal seen
        for index, length in enumerate(lengths):
            seen = index
            yield index, length

    rows = full = waiting = 0
    for row in packing.pack(items(), 64):
        rows += 1
        full += sum(lengths[item] for item in row)
        if seen < len(lengths) - 1:
            # All but the items of the open rows are out.
            waiting = max(waiting, sum(lengths[: seen + 1]) - full)
    assert full / (64 * rows) > 0.97
    assert waiting <= packing.OPEN_ROWS * 64 + 64


@pytest.mark.parametrize("length", [0, 65, -1])
def test_what_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="rows of 64"):
        list(packing.pack([("x", length)], 64))


@given(st.integers(1, 5000), st.integers(1, 510))
def test_spans_cover_a_document_once(length: int, limit: int) -> None:
    spans = list(packing.spans(length, limit))
    assert [token for start, size in spans for token in range(start, start + size)] == list(range(length))
    assert all(size == limit for _, size in spans[:-1])


_DOCUMENTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=12)


def _placed(lengths: list[list[int]]) -> list[pairing.Document]:
    starts = itertools.accumulate(map(sum, lengths), initial=0)
    return list(zip(starts, lengths, strict=False))


@given(_DOCUMENTS, st.integers(5, 60), st.integers(0, 99))
def test_pairs_cover_every_token_and_stay_within_their_documents(
    lengths: list[list[int]], limit: int, seed: int
) -> None:
    documents = _placed(lengths)
    found = list(pairing.pairs(documents, limit, random.Random(seed)))
    owner = [index for index, document in enumerate(lengths) for _ in range(sum(document))]
    covered: list[int] = []
    for a, a_len, b, b_len in found:
        assert a_len > 0
        assert a_len + b_len <= limit
        assert len(set(owner[a : a + a_len])) == 1
        assert len(set(owner[b : b + b_len])) == (1 if b_len else 0)
        goes_on = b_len > 0 and b == a + a_len and owner[b] == owner[a]
        assert goes_on or not b_len or owner[b] != owner[a]
        covered += range(a, a + a_len + (b_len if goes_on else 0))
    assert covered == list(range(len(owner)))
    assert found == list(pairing.pairs(documents, limit, random.Random(seed)))


def test_half_of_the_pairs_go_on() -> None:
    documents = _placed([[9] * 40 for _ in range(500)])
    found = list(pairing.pairs(documents, 60, random.Random(1)))
    share = sum(place.b == place.a + place.a_len for place in found) / len(found)
    # The last sentence of a document can only be paired with another document: a few more jump than go on.
    assert 0.42 < share < 0.52
