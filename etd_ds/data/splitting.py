"""Text into sentences by rules alone: fast, deterministic, and no model to download."""

from __future__ import annotations

import re

# A full stop, possibly doubled and followed by closing quotes, then a gap: a border unless what stands around it says
# otherwise. Ideographic stops need no gap.
_CANDIDATE = re.compile(r"""[.!?…]+["'”’»)\]]* |[。！？]+[”’」』）]*""")
_OPENING = "\"'“‘«([¿¡"
# Words whose full stop rarely ends a sentence when a capital or a digit follows.
_WORDS = """
mr mrs ms dr prof rev hon st sr jr gen col lt sgt capt adm gov sen rep vs etc cf al fig figs nos vol vols pp ed eds
trans approx ca fl ft mt inc ltd co corp dept univ jan feb mar apr jun jul aug sep sept oct nov dec lat lit ger
"""
_ABBREVIATIONS = frozenset(_WORDS.split())
# After these an abbreviation may still end a sentence, and a capital is then the better sign.
_ENDING = frozenset(("etc", "inc", "ltd", "co", "corp", "al", "jr", "sr"))
_DOTTED = re.compile(r"(?:[a-z]\.)+[a-z]")  # i.e, u.s, p.m


def sentences(text: str) -> list[str]:
    """Sentences of `text` in order, whitespace collapsed; a line break always ends one.

    No character but whitespace is lost: joined by blanks they are the collapsed text (up to ideographic stops).
    """
    found = []
    for line in text.splitlines():
        line = " ".join(line.split())
        start = 0
        for match in _CANDIDATE.finditer(line):
            end = match.end()
            if end < len(line) and _ends_sentence(line, start, match):
                found.append(line[start:end].rstrip())
                start = end
        if start < len(line):
            found.append(line[start:].rstrip())
    return found


def _ends_sentence(line: str, start: int, match: re.Match[str]) -> bool:
    mark, after = match.group(), match.end()
    if mark[0] in "。！？":
        return True
    while after < len(line) and line[after] in _OPENING:
        after += 1
    if after == len(line) or line[after].islower() or not line[after].isalnum():
        return False
    if mark != ". ":
        return True
    word = line[max(start, line.rfind(" ", start, match.start()) + 1) : match.start()].lstrip(_OPENING).lower()
    if word in _ENDING:
        return line[after].isupper()
    initial = len(word) == 1 and word.isalpha() and word != "i"  # J. R. R. Tolkien, E. coli
    return not (initial or word in _ABBREVIATIONS or _DOTTED.fullmatch(word))
