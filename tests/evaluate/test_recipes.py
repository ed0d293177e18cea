"""The paper's rows as data: consistent in themselves, runnable at every scale, refused with reasons when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from etd_ds import flops
from etd_ds.contract import errors, shape
from etd_ds.evaluate import recipes, tasks

PAPER = recipes.read()
GLUE = ("sst2", "mnli", "mrpc", "cola", "qnli", "qqp", "stsb")
# the paper rounds what it averages
ROUNDING = 0.03


@pytest.mark.parametrize("row", [row for row in PAPER.rows if row.paper.table1], ids=lambda row: row.slug)
def test_averages_of_table_1_follow_from_its_scores(row: recipes.Row) -> None:
    """The average is over GLUE's seven and SQuAD's F1: a mistyped figure shows here."""
    line = row.paper.table1
    assert line is not None
    scores = [getattr(line, name) for name in (*GLUE, "squad_f1")]
    assert sum(scores) / 8 == pytest.approx(line.average, abs=ROUNDING)
    assert line.squad_em < line.squad_f1


@pytest.mark.parametrize("row", [row for row in PAPER.rows if row.paper.table2], ids=lambda row: row.slug)
def test_averages_of_table_2_follow_from_its_scores(row: recipes.Row) -> None:
    line, other = row.paper.table2, row.paper.table1
    assert line is not None
    assert (7 * line.score + line.squad_f1) / 8 == pytest.approx(line.average, abs=ROUNDING)
    if other is not None:
        assert (line.squad_f1, line.squad_em, line.average) == (other.squad_f1, other.squad_em, other.average)
        assert sum(getattr(other, name) for name in GLUE) / 7 == pytest.approx(line.score, abs=ROUNDING)


@pytest.mark.parametrize("row", [row for row in PAPER.rows if row.paper.table1 and not row.note], ids=lambda r: r.slug)
def test_costs_of_the_paper_follow_from_its_schedule(row: recipes.Row) -> None:
    """FLOPs and parameters of each row from its own spec; an `x % trained` row is that share of its run."""
    line, trained = row.paper.table1, row.trained
    run = PAPER.row(trained.row) if trained else row
    if run.spec is None:
        return  # the teacher
    assert line is not None
    job = PAPER.job(run, "paper", 0)
    student = shape.student(job, shape.BERT_BASE)
    assert job.steps is not None
    steps = job.steps * (trained.percent / 100 if trained else 1)
    cost = flops.distillation(
        shape.BERT_BASE, student, job.seq_length, round(steps * job.batch_size), mode="electra_compat"
    )
    # 200,000 and 250,000 of 700,000 steps are called 28 % and 35 %
    assert line.flops == pytest.approx(cost, rel=0.025 if trained else 0.005)
    assert line.parameters == pytest.approx(flops.parameters(student), rel=0.04)


def test_all_rows_of_both_tables_are_there() -> None:
    assert sum(row.paper.table1 is not None for row in PAPER.rows) == 15
    assert sum(row.paper.table2 is not None for row in PAPER.rows) == 8
    modes = {row.name: PAPER.job(row, "paper", 0) for row in PAPER.runnable()}
    assert modes["Rand-Init"].mode == "none"
    assert modes["ETD-Rand"].mode == "rand"
    assert not modes["ETD-wo-hidn-con"].hidden_consistency
    assert modes["ETD-Impt-rev-all"].reverse == ("ffn", "head", "hidden")
    assert modes["ETD-Impt-top"].layer_selection == "top"
    assert modes["ETD-MiniLM"].objective == "minilm"
    assert modes["4L-Rand"].layers == 4


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_row_has_a_possible_student_at_every_scale(scale: str) -> None:
    teacher = shape.BERT_BASE if scale == "paper" else shape.EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)
    for row in PAPER.runnable():
        for seed in PAPER.scales[scale].seeds:
            job = PAPER.job(row, scale, seed)
            assert job.seed == seed
            shape.student(job, teacher)
    assert tasks.named(list(PAPER.scales[scale].tasks)) is not None


SMALLEST = """
title: T
base: {steps: 2}
scales:
  one: {spec: {}, students: {s: {layers: 2, hidden: 96}}, seeds: [0], tasks: [], evaluate: {}, scaled_down: []}
rows:
  - {name: A, student: s, spec: {mode: rand}}
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("mode: rand", "mod: rand"), "mod: no such field"),
        (("mode: rand", "mode: best"), "mode: Input should be"),
        (("student: s,", "student: t,"), "A: scale one has no student 't'"),
        (("student: s,", ""), "A: wanted student and spec together"),
        (("tasks: []", "tasks: [rte]"), "wanted sst2"),
        (("steps: 2", "steps: 2, validation_sequences: 0"), "A: scale one measures no held-out loss"),
        (("seeds: [0]", "score_curves: {tasks: [sst2], steps: [0, 1]}, seeds: [0]"), "no checkpoint is kept of 1"),
        (("seeds: [0]", "score_curves: {tasks: [sst2], steps: [2]}, seeds: [0]"), "no checkpoint is kept of 2"),
        (("seeds: [0]", "score_curves: {tasks: [rte], steps: [2]}, seeds: [0]"), "wanted sst2"),
        (("seeds: [0]", "seeds: [x]"), "seeds.0: Input should be a valid integer"),
        (("title: T", "title: [T"), "is not YAML"),
        (("title: T", "title: T\norderings: [{better: B, worse: A}]"), "named, but no row that runs: B"),
        (("rows:", "rows:\n  - {name: A}"), "two have the same name"),
        (("rows:", "rows:\n  - {name: a +}"), "the same folder's"),
    ],
)
def test_mistakes_are_named(change: tuple[str, str], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(SMALLEST)
    assert recipes.read(path).job(recipes.read(path).rows[0], "one", 3).seed == 3
    path.write_text(SMALLEST.replace(*change))
    with pytest.raises(errors.EtdError) as caught:
        recipes.read(path)
    assert reason in str(caught.value)
    assert "own.yaml" in str(caught.value)
