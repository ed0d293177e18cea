"""A task from WordNet's nouns: does a definition make a word a kind of another?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from etd_ds.contract import errors
from etd_ds.evaluate.examples import Labelled, Material
from etd_ds.evaluate.splits import Splits, number_of

NOUNS = "data.noun"
_ONE_IN = 4  # of the nouns that fit


class Noun(NamedTuple):
    """One synset: its first word, its definition without examples, and the synset that it is a kind of."""

    word: str
    definition: str
    parent: str | None


def isa(folder: Path | None) -> Material:
    """Pairs (definition of a noun, "it is a kind of" its parent or, wrongly, a sibling of that parent) [Fellbaum 1998].

    Neither text names the other's word, so that overlap of words says little; a word is in one split only.
    """
    nouns = _read((folder or Path()) / NOUNS)
    children: dict[str, list[str]] = {}
    for key, noun in nouns.items():
        if noun.parent is not None:
            children.setdefault(noun.parent, []).append(key)
    splits = Splits()
    for key, noun in nouns.items():
        if noun.parent not in nouns or not _fits(noun, nouns[noun.parent]) or number_of(f"isa {key}") % _ONE_IN:
            continue
        right = nouns[noun.parent]
        siblings = [other for other in children.get(right.parent or "", []) if other != noun.parent]
        wrong = next((nouns[other].word for other in _turned(siblings, key) if nouns[other].word != right.word), None)
        if wrong is None:
            continue
        premise = f"A {noun.word} is {noun.definition}."
        splits.add(noun.word, Labelled(premise, f"A {noun.word} is a kind of {right.word}.", 1.0))
        splits.add(noun.word, Labelled(premise, f"A {noun.word} is a kind of {wrong}.", 0.0))
    return splits.material()


def _fits(noun: Noun, parent: Noun) -> bool:
    """A common noun with a definition that says something without naming the parent."""
    return (
        len(noun.definition.split()) >= 5
        and noun.word[0].islower()
        and parent.word.lower() not in noun.definition.lower()
        and parent.word.lower() not in noun.word.lower()
    )


def _turned(keys: list[str], by: str) -> list[str]:
    start = number_of(f"sibling {by}") % max(1, len(keys))
    return keys[start:] + keys[:start]


def _read(path: Path) -> dict[str, Noun]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise errors.EtdError(
            f"data: wordnet_isa needs WordNet 3's file {NOUNS} in the folder that --data names; Debian has it in the "
            "package wordnet-base, as /usr/share/wordnet",
            field="data",
            wanted=NOUNS,
        ) from None
    try:
        # lines that begin with a space are the licence
        return dict(_synset(line) for line in lines if line.strip() and not line.startswith(" "))
    except (ValueError, IndexError) as error:
        raise errors.EtdError(f"data: {path.name} is not in WordNet 3's format ({error})", field="data") from None


def _synset(line: str) -> tuple[str, Noun]:
    """`offset file n words(hex) word id … pointers pointer offset pos places … | definition; "examples"`."""
    data, _, gloss = line.partition(" | ")
    cells = data.split()
    words = int(cells[3], 16)
    pointers = cells[5 + 2 * words :]
    parents = [pointers[i + 1] for i in range(0, 4 * int(cells[4 + 2 * words]), 4) if pointers[i] == "@"]
    definition = gloss.split('; "')[0].strip().rstrip(";")
    return cells[0], Noun(cells[4].replace("_", " "), definition, parents[0] if parents else None)
