"""A corpus as text, before or after it was prepared: for scoring neurons and for comparing models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from etd_ds.contract import errors
from etd_ds.data import corpus, reading, shards, sources, splitting, tokenize


def sentences(reference: str, count: int) -> list[str]:
    """The first `count` sentences of a corpus in file order. Raises `CorpusError` when it holds fewer."""
    return [sentence for document in opening(reference, count) for sentence in document]


def opening(reference: str, count: int) -> list[list[str]]:
    """The same by document; of the last one only what belongs to them. Raises `CorpusError`."""
    found: list[list[str]] = []
    missing = count
    for _, document in documents(reference):
        found.append(document[:missing])
        missing -= len(found[-1])
        if not missing:
            return found
    raise errors.CorpusError(
        f"corpus: wanted {count} sentences, {reference} holds {count - missing}; ask for fewer (importance_sentences) "
        "or give more text",
        wanted=count,
        got=count - missing,
    )


def documents(reference: str) -> Iterator[tuple[int, list[str]]]:
    """(hash, sentences) of every document in file order. Raises `CorpusError`.

    A prepared folder has no text any more: its tokens are decoded. The same tokenizer turns them into the same tokens
    again, save for words that it did not know: [UNK] is a special token, and those are left out of the text.
    """
    folder = Path(reference).expanduser()
    if corpus.is_prepared(folder):
        yield from _decoded(folder)
        return
    tally = reading.Tally()
    for piece in sources.pieces(sources.locate(reference)):
        for text in reading.documents(piece, tally):
            yield shards.text_hash(text), splitting.sentences(text)


def _decoded(folder: Path) -> Iterator[tuple[int, list[str]]]:
    tokenizer = tokenize.open_file(folder / corpus.TOKENIZER)
    special = tokenize.special(tokenizer)
    for index in range(len(corpus.read_manifest(folder).shards)):
        tokens = shards.tokens(folder, index, special)
        lengths = iter(shards.sentences(folder, index).tolist())
        at = 0
        for text_hash, count, _ in shards.documents(folder, index).tolist():
            ids = []
            for _ in range(count):
                length = next(lengths)
                ids.append(tokens[at : at + length].tolist())
                at += length
            yield text_hash, tokenizer.decode_batch(ids)
