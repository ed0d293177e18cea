"""Documents as Markdown and HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from etd_ds.stages import document
from etd_ds.stages.document import Bullets, Picture, Section, Table

NASTY = "a|b <script>alert(1)</script> *c* _d_ & é"
SECTIONS = [
    Section(
        "H & <i>",
        [NASTY, Table(["x|y", "z"], [[NASTY, "1"], ["–", "2 ± 1"]]), Bullets([NASTY]), Picture("f.svg", 'a "picture"')],
    )
]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_shows_text_as_text() -> None:
    page = document.html("T <b>", SECTIONS)
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags
    assert "b" not in reader.tags
    assert sum(NASTY in text for text in reader.text) == 3
    assert reader.tags.count("td") == 2
    assert reader.tags.count("img") == 1


def test_markdown_tables_keep_their_columns() -> None:
    lines = document.markdown("T", SECTIONS).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {3}
    assert "<script>" not in "\n".join(lines)
    assert '![a "picture"](f.svg)' in lines
