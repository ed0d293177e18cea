"""Raw text into a prepared corpus: tokenize pieces, hold documents out, lay rows, publish. Goes on when killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import tokenizers
from tqdm import tqdm

from etd_ds.contract import errors, rundir
from etd_ds.data import corpus, held_out, laying, reading, shards, sources, tokenize, tokenizing

LEAST_LENGTH = 8
"""Tokens of the shortest rows, as in a job spec."""


@dataclass(frozen=True)
class Weighted:
    """A source and how often an epoch passes over it: 2 is twice; 0.5 is half of its documents, chosen by hash."""

    source: sources.Source
    weight: float = 1.0


def prepare(
    reference: str,
    *,
    tokenizer: Path,
    seq_length: int,
    validation_sequences: int,
    cache: Path,
    seed: int = 0,
    layout: corpus.Layout = "packed",
    progress: bool = True,
) -> corpus.Corpus:
    """The corpus that a spec names, from the cache or made now. `reference` may also be a folder prepared before.

    At most `validation_sequences` rows, and never more than a tenth, are held out. Raises `CorpusError`.
    """
    opened = tokenize.open_tokenizer(tokenizer)
    folder = Path(reference).expanduser()
    if corpus.is_prepared(folder):
        return _checked(corpus.open_corpus(folder), opened, seq_length)
    options = make_options(
        opened, seq_length=seq_length, layout=layout, validation_sequences=validation_sequences, seed=seed
    )
    inputs = [Weighted(sources.locate(reference))]
    entries = _entries(inputs)
    target = cache / "corpus" / _key(entries, options)
    return build(inputs, options, opened, target, entries=entries, progress=progress)


def make_options(
    tokenizer: tokenizers.Tokenizer, *, seq_length: int, layout: corpus.Layout, validation_sequences: int, seed: int
) -> corpus.Options:
    """Options in their canonical form: what does not matter is not part of the key. Raises `CorpusError`."""
    if seq_length < LEAST_LENGTH:
        raise errors.CorpusError(
            f"seq_length: wanted {LEAST_LENGTH} or more, got {seq_length}", field="seq_length", got=seq_length
        )
    if validation_sequences < 0:
        raise errors.CorpusError(
            f"validation_sequences: wanted 0 or more, got {validation_sequences}",
            field="validation_sequences",
            got=validation_sequences,
        )
    return corpus.Options(
        tokenizer=tokenize.digest(tokenizer),
        seq_length=seq_length,
        layout=layout,
        validation_sequences=validation_sequences,
        seed=seed if layout == "pairs" else 0,
    )


def build(
    inputs: Sequence[Weighted],
    options: corpus.Options,
    tokenizer: tokenizers.Tokenizer,
    target: Path,
    *,
    entries: tuple[corpus.SourceEntry, ...] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> corpus.Corpus:
    """Make `target`, or open it if the same corpus stands there. Work goes on where a killed one stopped.

    One process builds a target at a time; others wait for it and take its result. `workers` none means as many
    processes as cores, where there is enough text for them. Raises `CorpusError`.
    """
    entries = _entries(inputs) if entries is None else entries
    key = _key(entries, options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f".{target.name}.lock")):
        if corpus.is_prepared(target):
            if (there := corpus.read_manifest(target)).key != key:
                raise errors.CorpusError(
                    f"corpus: {target} holds another corpus (key {there.key[:12]}, wanted {key[:12]}); "
                    "choose another folder or delete it"
                )
            return corpus.open_corpus(target)
        if target.exists() and any(target.iterdir()):
            raise errors.CorpusError(f"corpus: {target} holds other files; choose a new or empty folder")
        aside = _aside(target, key)
        try:
            rundir.publish_bytes(aside / corpus.TOKENIZER, tokenizer.to_str().encode())
            made = _tokenize(inputs, aside, workers, progress)
            manifest = _lay(entries, options, tokenizer, aside, made, key, progress)
            _publish(aside, target, manifest)
        except OSError as error:
            raise errors.CorpusError(
                f"corpus: writing {aside} failed: {error.strerror or error}; what is finished is kept, and the same "
                "command goes on from there"
            ) from None
    return corpus.open_corpus(target)


def _checked(opened: corpus.Corpus, tokenizer: tokenizers.Tokenizer, seq_length: int) -> corpus.Corpus:
    options = opened.manifest.options
    if options.tokenizer != tokenize.digest(tokenizer):
        raise errors.CorpusError(
            f"corpus: {opened.folder} was prepared with another tokenizer than the teacher's; prepare it with this one"
        )
    if options.seq_length != seq_length:
        raise errors.CorpusError(
            f"corpus: {opened.folder} was prepared for {options.seq_length} tokens a sequence, wanted {seq_length}; "
            f"prepare it again or set seq_length to {options.seq_length}",
            wanted=seq_length,
            got=options.seq_length,
        )
    return opened


def _entries(inputs: Sequence[Weighted]) -> tuple[corpus.SourceEntry, ...]:
    return tuple(
        corpus.SourceEntry(
            reference=item.source.reference,
            revision=item.source.revision,
            identity=sources.identity(item.source),
            bytes=item.source.size,
            weight=item.weight,
        )
        for item in inputs
    )


def _key(entries: Sequence[corpus.SourceEntry], options: corpus.Options) -> str:
    inputs = [(entry.identity, entry.weight) for entry in entries]
    content = json.dumps([inputs, options.model_dump()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _aside(target: Path, key: str) -> Path:
    # The unfinished folder. What another corpus left there is of no use.
    aside = target.with_name(f".{target.name}.partial")
    mark = aside / "key"
    if aside.exists() and not (mark.is_file() and mark.read_text() == key):
        shutil.rmtree(aside)
    aside.mkdir(exist_ok=True)
    rundir.publish_bytes(mark, key.encode())
    return aside


def _publish(aside: Path, target: Path, manifest: corpus.Manifest) -> None:
    named = set(manifest.files).union(*(shard.files for shard in manifest.shards))
    for path in aside.iterdir():
        if path.name in named:
            rundir.fsync_path(path)
        else:  # the descriptions of shards, which the manifest repeats, and what a killed attempt left
            path.unlink()
    rundir.publish_json(aside / corpus.MANIFEST, manifest)
    aside.rename(target)
    rundir.fsync_path(target.parent)


def _bar(progress: bool, what: str, unit: str, total: int) -> tqdm[NoReturn]:
    """A progress bar with speed and time left, on a terminal only."""
    return tqdm(total=total or None, desc=what, unit=unit, unit_scale=True, disable=None if progress else True)


def _tokenize(inputs: Sequence[Weighted], aside: Path, workers: int | None, progress: bool) -> list[shards.Shard]:
    sizes = [item.source.size for item in inputs]
    tasks: list[tokenizing.Task] = []
    for number, item in enumerate(inputs):
        for piece in sources.pieces(item.source):
            tasks.append(tokenizing.Task(len(tasks), number, piece))
    if workers is None:
        workers = tokenizing.processes(sum(sizes) if all(sizes) else None)
    made = []
    with _bar(progress, "tokenize", "B", sum(sizes)) as shown:
        results = tokenizing.run(tasks, aside, aside / corpus.TOKENIZER, max(1, min(workers, len(tasks))))
        for task, shard in zip(tasks, results, strict=True):
            made.append(shard)
            shown.update(task.piece.size)
    for item in inputs:
        if changed := sources.changed(item.source):
            # What stands in the folder is of neither state of that file.
            shutil.rmtree(aside)
            raise errors.CorpusError(f"corpus: {changed} changed while it was read; start again when it is complete")
    return made


def _lay(
    entries: tuple[corpus.SourceEntry, ...],
    options: corpus.Options,
    tokenizer: tokenizers.Tokenizer,
    aside: Path,
    made: list[shards.Shard],
    key: str,
    progress: bool,
) -> corpus.Manifest:
    tally = reading.Tally()
    for shard in made:
        tally.add(reading.Tally(**shard.tally))
    total = sum(shard.tokens for shard in made)
    if not total:
        raise errors.CorpusError(
            f"corpus: {' and '.join(entry.reference for entry in entries)} holds no text "
            f"({tally.lines_skipped} lines were not JSON with a string 'text')"
        )
    special = tokenize.special(tokenizer)
    weights = [entry.weight for entry in entries]
    lay = laying.Laying(aside, made, weights=weights, options=options, special=special)
    wanted = options.validation_sequences * options.seq_length
    held = held_out.choose(lay.documents(), min(wanted, total // 10), total // 10)
    with _bar(progress, "lay rows", "token", total) as shown:
        train = lay.train(held, shown.update)
    validation = lay.validation(held, min(options.validation_sequences, train.rows // 9))
    if not train.rows:
        raise errors.CorpusError("corpus: its weights leave no document to train on")
    indices = [f"{split}.{kind}" for split in ("train", "validation") for kind in ("rows", "segments")]
    return corpus.Manifest(
        key=key,
        sources=entries,
        options=options,
        special=asdict(special),
        documents=sum(shard.documents for shard in made),
        sentences=sum(shard.sentences for shard in made),
        tokens=total,
        unknown=sum(shard.unknown for shard in made),
        duplicates=held_out.duplicates(lay.documents),
        tally=vars(tally),
        train=train,
        validation=validation,
        shards=tuple(made),
        files={name: rundir.digest(aside / name) for name in (corpus.TOKENIZER, *indices)},
    )
