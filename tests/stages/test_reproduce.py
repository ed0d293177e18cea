"""A reproduction end to end at the smallest scale: real extraction, real trainers, real scores, and the report."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etd_ds import cli
from etd_ds.contract import errors, events, launch, rundir
from etd_ds.evaluate import recipes
from etd_ds.stages import findings, plots, report, reproduce, reproduction

OWN = """
title: Own
base: {teacher: embedded, corpus: embedded, seq_length: 32, batch_size: 8, steps: 4, validation_sequences: 8,
       validate_every: 2, checkpoint_every: 2, keep_checkpoints: 3, log_every: 1}
scales:
  tiny:
    spec: {}
    students: {s: {layers: 2, hidden: 96}}
    seeds: [0]
    tasks: [wiki_pair]
    evaluate: {learning_rates: [1.0e-4], epochs: [1], train_limit: 16, eval_limit: 8}
    score_curves: {tasks: [wiki_pair], steps: [0, 2]}
    scaled_down: [everything]
rows:
  - {name: Random, student: s, spec: {mode: none}}
  - name: Drawn
    student: s
    spec: {mode: rand}
    paper: {table2: {loss: 1.2, score: 80, squad_f1: 80, squad_em: 70, average: 80}}
  - {name: "Drawn, early", trained: {row: Drawn, reaches: Random, percent: 50}}
figures: [{name: Losses, rows: [Random, Drawn]}, {name: Scores, of: scores, rows: [Drawn]}]
orderings: [{better: Drawn, worse: Random}]
"""


def command(recipes_file: Path, out: Path, cache: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "etd_ds.cli", "reproduce", "--recipes", str(recipes_file), "--scale", "tiny"]
    return [*argv, "--out", str(out), "--cache", str(cache), "--quiet", *more]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Both rows distilled by one trainer; then one of them alone scored by the same command again."""
    root = tmp_path_factory.mktemp("reproduction")
    file, out, cache, text = root / "own.yaml", root / "out", root / "cache", root / "text.txt"
    text.write_text("\n\n".join(f"Sentence {number} is about reports and what is in them." for number in range(400)))
    file.write_text(OWN.replace("corpus: embedded", f"corpus: {text}"))
    for more in (["--tasks"], ["--rows", "Drawn"]):
        done = subprocess.run(
            command(file, out, cache, *more), capture_output=True, text=True, timeout=300, cwd=launch.REPOSITORY
        )
        assert done.returncode == 0, done.stderr
    return file, out, cache


@pytest.mark.slow
def test_runs_are_ordinary_run_folders_that_shared_one_trainer(reproduced: tuple[Path, Path, Path]) -> None:
    _, out, _ = reproduced
    for name, mode in (("random-seed0", "none"), ("drawn-seed0", "rand")):
        run = rundir.RunDir(out / "runs" / name)
        assert run.read_job().mode == mode
        result = run.read_result()
        assert result is not None
        assert result.steps == 4
    # the second command found both runs finished and started no trainer
    attempts = [e for e in events.read(out / "runs" / "drawn-seed0" / "events.jsonl") if isinstance(e, events.Attempt)]
    assert len(attempts) == 1
    assert not (out / "runs" / "drawn-seed0" / "log.txt").exists()  # the first one's log is the trainer's


@pytest.mark.slow
def test_the_report_says_what_the_folders_say(reproduced: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, out, _ = reproduced
    found = findings.collect(out, reproduction.read(out))
    assert set(found.runs) == {"Random", "Drawn"}
    assert found.tasks == ("wiki_pair",)
    assert found.missing == ()
    losses = {}
    for row in ("Random", "Drawn"):
        result = rundir.RunDir(out / "runs" / f"{row.lower()}-seed0").read_result()
        assert result is not None
        assert result.validation_after is not None
        losses[row] = result.validation_after["loss"]
        assert found.losses(row) == (pytest.approx(losses[row]),)
    assert found.differences("Drawn", "Random") == [pytest.approx(losses["Random"] - losses["Drawn"])]
    files = report.write(found, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for wanted in (f"{losses['Drawn']:.4f}", "wiki\\_pair", "floor: bag of words", "| 50 % |", "everything"):
        assert wanted in text
    assert len(files) == (7 if plots.available() else 3)
    again = [path.read_bytes() for path in files]
    kept = findings.read(tmp_path / report.RESULTS)
    assert kept == found
    assert [path.read_bytes() for path in report.write(kept, tmp_path)] == again
    assert f"| Drawn | 1 | {found.starts('Drawn')[0]:.3f} | {losses['Drawn']:.4f} |" in report.summary(kept)


@pytest.mark.slow
def test_a_row_is_scored_over_its_training(reproduced: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, out, _ = reproduced
    found = findings.collect(out, reproduction.read(out))
    scored = found.runs["Drawn"][0]
    assert list(found.score_curve("Drawn", "wiki_pair")) == [0, 2, 4]
    assert found.score_curve("Random", "wiki_pair") == {}
    run = rundir.RunDir(out / "runs" / "drawn-seed0")
    for step, folder in ((0, run.init), (2, run.revisions / "step-2"), (4, run.student)):
        scores = scored.scores if step == 4 else scored.scores_at[step]
        assert scores["wiki_pair"].model_sha256 == rundir.digest(folder / "model.safetensors").sha256
    report.write(found, tmp_path)
    assert "## Scores: wiki\\_pair" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_other_recipes_do_not_mix_with_these(reproduced: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, out, _ = reproduced
    known = reproduction.read(out)
    changed = tmp_path / "changed.yaml"
    changed.write_text(file.read_text().replace("steps: 4", "steps: 5"))
    with pytest.raises(errors.RunFolderError, match="other recipes"):
        reproduction.keep(out, known.model_copy(update={"recipes": recipes.read(changed)}))
    reproduction.keep(out, known.model_copy(update={"seeds": (3,), "rows": ("Random",)}))
    assert reproduction.read(out).seeds == (0, 3)
    assert reproduction.read(out).rows == ("Random", "Drawn")


@pytest.mark.slow
def test_ended_from_outside_it_leaves_no_trainer_behind(reproduced: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, _, cache = reproduced
    long = tmp_path / "long.yaml"
    changed = file.read_text().replace("steps: 4", "steps: 100000").replace("steps: [0, 2]", "steps: [0]")
    long.write_text(changed)
    out = tmp_path / "out"
    child = subprocess.Popen(command(long, out, cache, "--rows", "Random"), cwd=launch.REPOSITORY)
    run = rundir.RunDir(out / "runs" / "random-seed0")
    deadline = time.monotonic() + 200
    while not any(isinstance(event, events.Step) for event in events.read(run.events)):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)  # a real process has to get so far
    child.send_signal(signal.SIGTERM)
    assert child.wait(200) == 130
    # the trainer had its last word before the command ended: a checkpoint, from which the same command continues
    ends = [event for event in events.read(run.events) if isinstance(event, events.End)]
    assert [end.outcome for end in ends] == ["stopped"]
    assert (run.checkpoints / "latest.json").exists()


def test_children_run_where_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # without site-packages, so that an installed copy does not count
    argv = [sys.executable, "-S", "-c", "import os, etd_ds; print(os.getcwd(), etd_ds.__file__)"]
    assert reproduce.Workshop(tmp_path, tmp_path)._run(argv, Path("log.txt"), ranks=1) == 0
    assert Path("log.txt").read_text().split() == [str(tmp_path), str(launch.REPOSITORY / "etd_ds" / "__init__.py")]


def test_relative_folders_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(OWN)
    seen: list[reproduce.Workshop] = []
    monkeypatch.setattr(reproduce.Workshop, "reproduce", lambda workshop, asked: seen.append(workshop))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    argv = [
        "reproduce",
        "--recipes",
        "own.yaml",
        "--scale",
        "tiny",
        "--out",
        "out",
        "--cache",
        "cache",
        "--data",
        "data",
    ]
    assert cli.main(argv) == 0
    assert (seen[0].out, seen[0].cache, seen[0].data) == (tmp_path / "out", tmp_path / "cache", tmp_path / "data")


def test_an_interrupted_run_is_not_set_back_by_fresh_ones(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    asked = reproduction.Reproduction(recipes=recipes.read(file), scale="tiny", seeds=(0,), rows=("Random", "Drawn"))
    cast = reproduction.members(tmp_path, asked)
    for member in cast:
        reproduction.lay(member.run, asked.job(member))
    workshop = reproduce.Workshop(tmp_path, tmp_path)
    assert workshop._groups(cast) == [cast]
    (cast[0].run.checkpoints / "step-00000002").mkdir(parents=True)
    assert workshop._groups(cast) == [[cast[0]], [cast[1]]]


def test_files_that_a_group_of_tasks_lacks_are_missed_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN.replace("[wiki_pair]", "[paper]"))
    asked = reproduction.Reproduction(recipes=recipes.read(file), scale="tiny", seeds=(0,), rows=("Drawn",))
    with pytest.raises(errors.EtdError, match=r"data: train\.tsv: missing; .* SST-2"):
        reproduce.Workshop(tmp_path / "out", tmp_path, data=tmp_path).reproduce(asked)
    assert not (tmp_path / "out").exists()


class Gone(subprocess.Popen):
    """A child that ends, and is waited for elsewhere, right after it was seen alive."""

    def poll(self) -> None:
        return None


def test_a_child_that_ends_just_before_its_signal_does_not_spare_the_others(tmp_path: Path) -> None:
    workshop = reproduce.Workshop(tmp_path, tmp_path)
    gone = Gone(["true"], start_new_session=True)
    gone.wait()
    living = subprocess.Popen(["sleep", "600"], start_new_session=True)
    workshop._children.update([gone, living])
    workshop._end({})
    assert living.poll() == -signal.SIGTERM
