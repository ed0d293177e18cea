"""A small document (headings, paragraphs, tables, pictures) as Markdown and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Table(NamedTuple):
    """Cells are plain text; the first column is left-aligned, the others right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """An image file beside the document, and what it shows."""

    file: str
    shows: str


class Bullets(NamedTuple):
    items: Sequence[str]


class Code(NamedTuple):
    """Text as it is typed."""

    text: str


class Section(NamedTuple):
    heading: str
    parts: Sequence[str | Table | Picture | Bullets | Code]


def table(of: Table) -> str:
    """GitHub's Markdown of a table."""
    lines = [of.headings, ["---", *["---:"] * (len(of.headings) - 1)], *of.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown."""
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks.append(f"## {_plain(section.heading)}")
        for part in section.parts:
            match part:
                case Table():
                    blocks.append(table(part))
                case Code():
                    blocks.append(f"```sh\n{part.text}\n```")
                case Picture():
                    blocks.append(f"![{_plain(part.shows)}]({part.file})")
                case Bullets():
                    blocks.append("\n".join(f"- {_plain(item)}" for item in part.items))
                case str():
                    blocks.append(_plain(part))
    return "\n\n".join(blocks) + "\n"


def html(title: str, sections: Sequence[Section]) -> str:
    """One page without scripts; pictures are referred to."""
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{escape(section.heading)}</h2>")
        for part in section.parts:
            match part:
                case Table():
                    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in part.headings)
                    rows = "".join(_html_row(row) for row in part.rows)
                    body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
                case Picture():
                    body.append(f'<img src="{escape(part.file)}" alt="{escape(part.shows)}">')
                case Bullets():
                    body.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in part.items) + "</ul>")
                case Code():
                    body.append(f"<pre>{escape(part.text)}</pre>")
                case str():
                    body.append(f"<p>{escape(part)}</p>")
    return _PAGE.format(title=escape(title), body="\n".join(body))


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .2rem .6rem; border-bottom: 1px solid #8884; text-align: right; }}
td {{ font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child {{ text-align: left; white-space: nowrap; }}
img {{ max-width: 100%; }}
</style>
<body>
{body}
</body>
</html>
"""


def _html_row(row: Sequence[str]) -> str:
    first, *others = map(escape, row)
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;").replace("\n", " ")


def _cell(text: str) -> str:
    return text if text.startswith("---") else _plain(text).replace("|", "\\|")
