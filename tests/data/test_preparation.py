import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from etd_ds import data
from etd_ds.contract import errors, teachers
from etd_ds.data import corpus, held_out, preparation, shards, sources, tokenize

TOKENIZER = tokenize.open_tokenizer(teachers.embedded_folder())


def _build(out: Path, *specs: str, layout: corpus.Layout = "packed", **options: object) -> data.Corpus:
    inputs = [preparation.Weighted(sources.locate(name), weight) for name, weight in map(sources.weighted, specs)]
    settings = {"seq_length": 64, "validation_sequences": 20, "seed": 0, "layout": layout}
    made = preparation.make_options(TOKENIZER, **settings)
    return preparation.build(inputs, made, TOKENIZER, out, progress=False, **options)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


PIECE = 500_000
_COMMAND = f"""
import sys
from etd_ds import cli
from etd_ds.data import sources
sources.PIECE_BYTES = {PIECE}
sys.exit(cli.main(sys.argv[1:]))
"""


def _prepare_process(source: str, out: Path, *, workers: int = 1, limit: int | None = None) -> subprocess.Popen[str]:
    """`etd-ds data prepare` with small pieces, and where `limit` is given on a disk that takes no larger file."""

    def restrict() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    argv = ["data", "prepare", "--source", source, "--out", str(out), "--seq-len", "64", "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *argv, "--validation-sequences", "20", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=restrict,
    )


@pytest.fixture(scope="session")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus as JSON lines, ten pieces long."""
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    texts = [entry["extract"] for entry in json.loads(sources.embedded_file().read_bytes()).values()]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", PIECE)


@pytest.fixture(scope="module")
def straight(large_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """That file prepared by one process in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", PIECE)
        made = _build(tmp_path_factory.mktemp("straight") / "out", str(large_file), workers=1)
    assert len(made.manifest.shards) > 4
    return _contents(made.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("small_pieces")
def test_several_processes_make_the_same_corpus(tmp_path: Path, large_file: Path, straight: dict[str, bytes]) -> None:
    assert _contents(_build(tmp_path / "out", str(large_file), workers=2).folder) == straight


@pytest.mark.slow
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on_where_it_stopped(
    tmp_path: Path, large_file: Path, straight: dict[str, bytes], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = tmp_path / ".out.partial" / shards.description(0)
    process = _prepare_process(str(large_file), out, workers=workers)
    while not first.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not out.exists()
    (tmp_path / ".out.partial" / shards.name(7, "tokens")).write_bytes(b"half-written")

    made: list[int] = []
    write = shards.write
    monkeypatch.setattr(shards, "write", lambda folder, index, *rest: made.append(index) or write(folder, index, *rest))
    resumed = _build(out, str(large_file), workers=1)
    assert 0 not in made
    assert made
    assert _contents(resumed.folder) == straight
    corpus.verify(out)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_nothing_to_trust(tmp_path: Path, large_file: Path) -> None:
    out = tmp_path / "out"
    # Enough for the tokenizer and every shard but too little for the index of the rows; then too little for a shard.
    for limit, workers in ((470_000, 1), (200_000, 1), (200_000, 2)):
        process = _prepare_process(str(large_file), out, workers=workers, limit=limit)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "etd-ds: corpus: writing" in output
        assert "File too large" in output
        assert "Traceback" not in output
        assert not out.exists()
    made = _prepare_process(str(large_file), out, workers=2)
    output, _ = made.communicate(timeout=120)
    assert made.returncode == 0, output
    corpus.verify(out)


def test_an_unfinished_folder_of_another_corpus_is_not_used(tmp_path: Path, corpus_file: Path) -> None:
    aside = tmp_path / ".out.partial"
    aside.mkdir()
    (aside / "key").write_text("another")
    (aside / shards.description(0)).write_text("{}")
    made = _build(tmp_path / "out", str(corpus_file))
    assert not aside.exists()
    corpus.verify(made.folder)


def test_a_damaged_shard_of_an_earlier_attempt_is_made_again(tmp_path: Path, corpus_file: Path) -> None:
    whole = _contents(_build(tmp_path / "whole", str(corpus_file)).folder)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "_lay", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        _build(out, str(corpus_file))
    damaged = tmp_path / ".out.partial" / shards.name(0, "tokens")
    content = bytearray(damaged.read_bytes())
    content[500] ^= 1
    damaged.write_bytes(content)
    assert _contents(_build(out, str(corpus_file)).folder) == whole


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path, corpus_file: Path) -> None:
    inputs = [preparation.Weighted(sources.locate(str(corpus_file)))]
    options = preparation.make_options(TOKENIZER, seq_length=64, layout="packed", validation_sequences=9, seed=0)
    with corpus_file.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(errors.CorpusError, match="changed while it was read"):
        preparation.build(inputs, options, TOKENIZER, tmp_path / "out", progress=False)
    assert not (tmp_path / ".out.partial").exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, corpus_file: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.CorpusError, match="holds other files"):
        _build(out, str(corpus_file))
    (out / "thesis.tex").unlink()
    _build(out, str(corpus_file))
    with pytest.raises(errors.CorpusError, match="holds another corpus"):
        _build(out, str(corpus_file), layout="pairs")


@pytest.mark.parametrize(("name", "content"), [("a.txt", b""), ("a.txt", b"\n \n\t\n"), ("a.jsonl", b"{}\n{}\n")])
def test_a_corpus_without_text_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.CorpusError, match="holds no text"):
        _build(tmp_path / "out", str(tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_an_empty_file_among_others_does_no_harm(tmp_path: Path, documents) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"")
    (tmp_path / "in" / "b.txt").write_text("\n\n".join(documents[:50]))
    (tmp_path / "in" / "c.txt").write_bytes(b"")
    assert _build(tmp_path / "out", str(tmp_path / "in")).manifest.documents == 50


def test_a_tiny_corpus_trains_on_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One sentence alone.")
    made = _build(tmp_path / "out", str(tmp_path / "a.txt"))
    assert (len(made.train), len(made.validation)) == (1, 0)


def test_sources_are_seen_as_often_as_they_weigh(tmp_path: Path, documents) -> None:
    for name, texts in (("a", documents[:300]), ("b", documents[300:600])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(" ".join(text.split()) for text in texts))
    made = _build(tmp_path / "out", f"{tmp_path}/a.txt=2.5", f"{tmp_path}/b.txt=0.3")
    assert [entry.weight for entry in made.manifest.sources] == [2.5, 0.3]
    seen = np.zeros(2)
    for segment in shards.mapped(made.folder / "train.segments", corpus.SEGMENT):
        seen[made.manifest.shards[segment["shard"]].source] += segment["a_len"]
    shares = seen / [shard.tokens for shard in made.manifest.shards]
    assert 2.2 < shares[0] <= 2.6
    assert 0.2 < shares[1] < 0.4


def test_a_prepared_folder_of_another_tokenizer_is_refused(tmp_path: Path, corpus_file: Path) -> None:
    made = _build(tmp_path / "out", str(corpus_file))
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of"]
    (teacher / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(errors.CorpusError, match="another tokenizer than the teacher's"):
        data.prepare(
            str(made.folder), tokenizer=teacher, seq_length=64, validation_sequences=20, cache=tmp_path, progress=False
        )


def test_a_prepared_folder_gives_its_sentences_back(tmp_path: Path, corpus_file: Path) -> None:
    made = _build(tmp_path / "out", str(corpus_file))
    before = data.sentences(str(corpus_file), 200)
    after = data.sentences(str(made.folder), 200)
    assert [TOKENIZER.encode(text).ids for text in after] == [TOKENIZER.encode(text).ids for text in before]
    assert len(held_out.sentences(str(made.folder), 30)) == 30


def test_held_out_sentences_are_not_trained_on(tmp_path: Path, corpus_file: Path) -> None:
    made = _build(tmp_path / "out", str(corpus_file))
    held = held_out.sentences(str(corpus_file), 20)
    text = " ".join(TOKENIZER.decode(made.train[index].ids_T.tolist()) for index in range(len(made.train)))
    openings = [TOKENIZER.decode(TOKENIZER.encode(sentence).ids[:12]) for sentence in held]
    assert not [opening for opening in openings if len(opening.split()) > 6 and opening in text]


def test_preparations_at_the_same_time_wait_for_each_other(tmp_path: Path, corpus_file: Path) -> None:
    crowd = [_prepare_process(str(corpus_file), tmp_path / "out") for _ in range(3)]
    assert [process.communicate(timeout=120) and process.returncode for process in crowd] == [0, 0, 0]
    corpus.verify(tmp_path / "out")


def test_choosing_stops_at_what_is_wanted_and_keeps_copies_together() -> None:
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(20):
        records = np.empty(100, shards.DOCUMENT)
        records["hash"], records["tokens"] = generator.integers(0, 300, 100), generator.integers(1, 50, 100)
        parts.append(records)
    everything = np.concatenate(parts)
    for wanted, limit in ((0, 1000), (500, 5000), (500, 520), (10**9, 10**9), (5, 0)):
        chosen = held_out.choose(iter(parts), wanted, limit)
        size = everything["tokens"][np.isin(everything["hash"], chosen)].sum()
        assert size <= limit
        assert wanted == 0 or np.array_equal(chosen, np.unique(everything["hash"])[: len(chosen)])
        if wanted <= size:
            last = everything["tokens"][everything["hash"] == chosen[-1]].sum() if len(chosen) else 0
            assert size - last < max(wanted, 1)
    assert held_out.duplicates(lambda: iter(parts)) == 2000 - len(np.unique(everything["hash"]))
