"""A BERT small enough to be fine-tuned in seconds, and task files in the distributed formats."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from etd_ds.contract import teachers


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers, hidden 48, random weights, the embedded teacher's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (source := teachers.embedded_folder() / name).exists():
            shutil.copyfile(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and SQuAD as distributed, with a rule so plain that the tiny model can learn it."""
    folder, draw = tmp_path_factory.mktemp("files"), random.Random(0)
    filler = ["film", "plot", "actor", "scene", "music", "camera", "story", "screen"]

    def text() -> list[str]:
        return [draw.choice(filler) for _ in range(draw.randint(3, 9))]

    (folder / "SST-2").mkdir()
    for name, count in (("train.tsv", 96), ("dev.tsv", 40)):
        rows = ["sentence\tlabel"]
        for i in range(count):
            words = text()
            words.insert(draw.randint(0, len(words)), ("dreadful", "wonderful")[i % 2])
            rows.append(f"{' '.join(words)}\t{i % 2}")
        (folder / "SST-2" / name).write_text("\n".join(rows) + "\n")
    for name, count in (("train-v1.1.json", 96), ("dev-v1.1.json", 24)):
        paragraphs = []
        for i in range(count):
            words = text()
            words.insert(draw.randint(0, len(words)), "zebra")
            context = " ".join(words)
            answer = {"text": "zebra", "answer_start": context.index("zebra")}
            row = {"id": f"{name} {i}", "question": "Which animal ?", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [row]})
        whole = {"version": "1.1", "data": [{"title": "Films", "paragraphs": paragraphs}]}
        (folder / name).write_text(json.dumps(whole))
    return folder
