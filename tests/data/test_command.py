from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from etd_ds import cli
from etd_ds.data import corpus, report


def _prepare(out: Path, *arguments: str) -> int:
    return cli.main(["data", "prepare", "--out", str(out), "--seq-len", "64", "--quiet", *arguments])


def test_prepare_then_inspect(tmp_path: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot, other = tmp_path / "out", tmp_path / "plot.svg", tmp_path / "other.txt"
    other.write_text("A document of its own. It has two sentences.\n\n" * 40)
    assert _prepare(out, "--source", f"{corpus_file}=2", f"{other}=0.1", "--layout", "pairs") == 0
    assert "2 times an epoch" in capsys.readouterr().out
    assert cli.main(["data", "inspect", str(out), "--samples", "2", "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert "padding avoided" in shown
    assert "unknown tokens" in shown
    assert shown.count("\nrow ") == 2
    assert "[CLS]" in shown
    bars = ElementTree.parse(plot).getroot().findall(".//{*}title")
    assert len(bars) == 32


def test_the_histogram_counts_every_segment(make) -> None:
    made = make(seq_length=50)
    found = report.of(made.folder)
    lengths = [length for index in range(len(made.train)) for length in made.train[index].lengths]
    assert found.lengths.tolist() == np.bincount(lengths, minlength=51).tolist()
    bars = found.histogram()
    assert sum(count for *_, count in bars) == found.segments == len(lengths)
    assert bars[0][0] == 1
    assert bars[-1][1] == 50
    assert found.padding_saved == pytest.approx(1 - sum(lengths) / (50 * len(lengths)))


def test_inspecting_finds_a_changed_shard(make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make().folder
    path = next(folder.glob("*.tokens"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert cli.main(["data", "inspect", str(folder)]) == 2
    assert f"{path} is missing or changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "/nowhere.txt"], "wanted 'embedded', a hub data set"),
        (["--tokenizer", "/nowhere"], "teacher: wanted 'embedded'"),
        (["--seq-len", "4"], "seq_length: wanted 8 or more, got 4"),
        (["--source", "embedded=-2"], "wanted a weight above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], message: str, capsys) -> None:
    assert _prepare(tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not corpus.is_prepared(tmp_path / "out")


def test_problems_of_the_text_are_counted_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 is not UTF-8.")
    assert _prepare(tmp_path / "out", "--source", str(tmp_path / "a.txt")) == 0
    assert "undecodable: 1" in capsys.readouterr().err


def test_what_is_no_prepared_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "inspect", str(tmp_path)]) == 2
    assert "holds no prepared corpus" in capsys.readouterr().err
