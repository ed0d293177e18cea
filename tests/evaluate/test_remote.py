"""Hub data sets, read by the real `datasets` from folders laid out like the hub's repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from etd_ds.contract import errors
from etd_ds.evaluate import door, remote, tasks
from etd_ds.evaluate.examples import Answer, Labelled, Question


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`tmp_path/hub`, where a test puts repositories; nothing else can be reached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(remote, "GLUE_REPO", str(tmp_path / "hub" / "glue"))
    monkeypatch.setattr(remote, "SQUAD_REPO", str(tmp_path / "hub" / "squad"))
    return tmp_path / "hub"


def lay(folder: Path, config: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    (folder / config).mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {config}", "  default: true", "  data_files:"]
    for split, rows in splits.items():
        file = f"{config}/{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / file)
        lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def test_mnli_comes_with_both_evaluations(hub: Path) -> None:
    splits = ("train", "validation_matched", "validation_mismatched", "test_matched")
    rows = {
        split: [{"premise": f"It ran ({split}).", "hypothesis": "It sat.", "label": i, "idx": i} for i in range(3)]
        for split in splits
    }
    lay(hub / "glue", "mnli", rows)
    material = door.open_task(tasks.TASKS["mnli"], None)
    assert set(material.evaluations) == {"m", "mm"}
    assert material.train[2] == Labelled("It ran (train).", "It sat.", 2.0)
    assert material.evaluations["mm"][0] == Labelled("It ran (validation_mismatched).", "It sat.", 0.0)


def test_similarity_keeps_its_scores_and_single_sentences_have_no_second(hub: Path) -> None:
    rows = [{"sentence1": "A plane.", "sentence2": "An aeroplane.", "label": 4.75, "idx": 0}]
    lay(hub / "glue", "stsb", {"train": rows, "validation": rows})
    (example,) = door.open_task(tasks.TASKS["stsb"], None).train
    assert example == Labelled("A plane.", "An aeroplane.", 4.75)


def test_squad_answers_come_with_their_places(hub: Path) -> None:
    answers = {"text": ["Łódź", "Łódź"], "answer_start": [3, 15]}
    rows = [{"id": "1", "title": "T", "question": "Where?", "context": "In Łódź, 🎬 and Łódź.", "answers": answers}]
    lay(hub / "squad", "plain_text", {"train": rows, "validation": rows})
    material = door.open_task(tasks.TASKS["squad"], None)
    wanted = Question("Where?", "In Łódź, 🎬 and Łódź.", (Answer("Łódź", 3), Answer("Łódź", 15)))
    assert list(material.train) == list(material.evaluations["dev"]) == [wanted]


def test_without_a_hub_the_other_doors_are_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GLUE_REPO", "nyu-mll/glue")
    with pytest.raises(errors.EtdError, match=r"nyu-mll/glue could not be had.*--data.*'offline'"):
        door.open_task(tasks.TASKS["sst2"], None)
