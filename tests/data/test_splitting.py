import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds import data
from etd_ds.data import splitting


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One ends. Two begins! Three? Yes.", ["One ends.", "Two begins!", "Three?", "Yes."]),
        ("Dr. Smith met J. R. R. Tolkien. They talked.", ["Dr. Smith met J. R. R. Tolkien.", "They talked."]),
        ("Around c. 320 BCE, i.e. long ago, it was. It is.", ["Around c. 320 BCE, i.e. long ago, it was.", "It is."]),
        ("The U.S. Army left. In 1950 it came back.", ["The U.S. Army left.", "In 1950 it came back."]),
        ('He said "Stop." Then he went.', ['He said "Stop."', "Then he went."]),
        ("It grew by 3.5 percent... and fell.", ["It grew by 3.5 percent... and fell."]),
        ("A line\nbreak ends\n\none", ["A line", "break ends", "one"]),
        ("They ate fish, rice, etc. The meal was good.", ["They ate fish, rice, etc.", "The meal was good."]),
        ("一つ。二つ。", ["一つ。", "二つ。"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_borders(text: str, wanted: list[str]) -> None:
    assert splitting.sentences(text) == wanted


@given(st.text(alphabet=st.sampled_from("aB1 .!?\"')…\n\té"), max_size=60))
def test_nothing_but_whitespace_is_lost(text: str) -> None:
    found = splitting.sentences(text)
    assert " ".join(found) == " ".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in found)


def test_embedded_corpus_holds_the_first_ten_thousand_sentences() -> None:
    found = data.sentences("embedded", 10_000)
    assert len(found) == 10_000
    assert found[:3] == data.sentences("embedded", 3)
    assert found[0] == (
        "20th-century classical music is Western art music that was written between 1901 and 2000, inclusive."
    )
