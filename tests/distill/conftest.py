"""A small world for real runs: a random 4-layer teacher with the real tokenizer, and a page of real text."""

import shutil

import launching
import pytest
import torch
from transformers import BertConfig, BertModel

from etd_ds import data
from etd_ds.contract import flags, rundir, teachers
from etd_ds.stages import extract


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """(teacher folder, corpus file, cache folder)."""
    root = tmp_path_factory.mktemp("world")
    teacher = root / "teacher"
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    model = BertModel(BertConfig(**sizes, initializer_range=0.2), add_pooling_layer=False)
    model.save_pretrained(teacher)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (teachers.embedded_folder() / name).exists():
            shutil.copy(teachers.embedded_folder() / name, teacher)
    corpus = root / "text.txt"
    corpus.write_text("\n\n".join(data.sentences("embedded", 600)))
    return teacher, corpus, root / "cache"


@pytest.fixture(scope="session")
def make_run(small_world, tmp_path_factory):
    """A function that lays an extracted run folder for `SPEC` with some fields changed."""
    teacher, corpus, cache = small_world

    def make(**changes):
        run = rundir.RunDir(tmp_path_factory.mktemp("run"))
        given = {**launching.SPEC, "teacher": str(teacher), "corpus": str(corpus), **changes}
        rundir.publish_json(run.job, flags.parse(given))
        extract.extract(run, cache=cache)
        return run

    return make
