"""Fine-tuning through the command, on the real engine, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etd_ds.contract import launch
from etd_ds.evaluate import encoding, reader, tasks
from etd_ds.evaluate.summaries import Summary, spreads

SEEDS = ("0", "1")
GRID = ("--learning-rates", "1e-7", "3e-3", "--epochs", "6", "--batch-size", "8")


def evaluate(model: Path, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etd_ds.cli", "evaluate", "--model", str(model), "--data", str(data)]
    command += ["--out", str(out), "--max-tokens", "96", "--cache", str(out / "cache"), "--json", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=launch.REPOSITORY)


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Summary]]:
    out = tmp_path_factory.mktemp("out")
    # the low rate cannot learn: the protocol must choose the high one
    done = evaluate(tiny_bert, task_files, out, "--task", "sst2", "squad", "--seeds", *SEEDS, *GRID)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert [json.loads(line)["task"] for line in lines] == ["sst2", "squad"]
    return out, [Summary.model_validate_json((out / f"{name}.json").read_bytes()) for name in ("sst2", "squad")]


@pytest.mark.slow
def test_a_rule_is_learnt_and_the_grid_chooses_the_setting_that_learns_it(finished) -> None:
    _, (sst2, squad) = finished
    assert sst2.learning_rate == squad.learning_rate == 3e-3
    assert sst2.scores["dev"]["accuracy"].mean > 90
    assert squad.scores["dev"]["em"].mean > 90
    assert squad.scores["dev"]["f1"].mean >= squad.scores["dev"]["em"].mean
    assert sst2.trials[1].last_loss < sst2.trials[1].first_loss


@pytest.mark.slow
def test_further_seeds_take_the_chosen_setting_only_and_all_is_said(finished) -> None:
    _, (sst2, _) = finished
    settings = [(trial.learning_rate, trial.epochs, trial.seed) for trial in sst2.trials]
    assert settings == [(1e-7, 6, 0), (3e-3, 6, 0), (3e-3, 6, 1)]
    assert sst2.scores["dev"]["accuracy"].values == tuple(t.scores["dev"]["accuracy"] for t in sst2.trials[1:])
    assert "batch size 8 instead of 32" in sst2.scaled_down
    assert any(line.startswith("learning rates") for line in sst2.scaled_down)


@pytest.mark.slow
def test_started_again_it_only_reads(finished, tiny_bert: Path, task_files: Path) -> None:
    out, (sst2, _) = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "sst2").iterdir()}
    # one trial is lost: it alone is made again, with the same scores
    lost = next(path for path in before if "lr0.003-ep6-seed1" in path.name)
    lost.unlink()
    done = evaluate(tiny_bert, task_files, out, "--task", "sst2", "--seeds", *SEEDS, *GRID)
    assert done.returncode == 0, done.stderr
    changed = {path for path in (out / "sst2").iterdir() if path.stat().st_mtime_ns != before[path]}
    assert changed == {lost}
    again = Summary.model_validate_json((out / "sst2.json").read_bytes())
    assert again.scores == sst2.scores


@pytest.mark.slow
def test_bad_input_ends_in_one_line_before_any_training(tiny_bert: Path, tmp_path: Path) -> None:
    done = evaluate(tiny_bert, tmp_path, tmp_path / "out", "--task", "sst3")
    assert done.returncode == 2
    assert "wanted sst2, mnli" in done.stderr


def test_deviation_is_that_of_the_sample() -> None:
    (spread,) = spreads([{"dev": {"accuracy": x}} for x in (80.0, 82.0, 84.0)])["dev"].values()
    assert (spread.mean, spread.deviation) == (82.0, 2.0)
    assert spreads([{"dev": {"accuracy": 80.0}}])["dev"]["accuracy"].deviation == 0.0


def test_padding_changes_no_logit(tiny_bert: Path) -> None:
    for name in ("sst2", "squad"):
        module = reader.build(tiny_bert, tasks.TASKS[name], torch.Generator().manual_seed(0)).eval()
        short, long = encoding.Row.of([101, 2143, 102], []), encoding.Row.of([101, *range(2000, 2020), 102], [])
        with torch.no_grad():
            alone, together = module(encoding.pad([short], 0))[0], module(encoding.pad([short, long], 0))[0]
        torch.testing.assert_close(together[: len(alone)], alone)
        if name == "squad":
            assert torch.isneginf(together[3:]).all()


def test_the_pooler_of_the_checkpoint_is_kept(tiny_bert: Path) -> None:
    from transformers import BertModel

    stock = BertModel.from_pretrained(tiny_bert)
    module = reader.build(tiny_bert, tasks.TASKS["sst2"], torch.Generator().manual_seed(0))
    assert module.pooler is not None
    assert torch.equal(module.pooler.weight, stock.pooler.dense.weight)
