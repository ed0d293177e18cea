"""The trainer's first stages, each rank in a thread."""

import concurrent.futures
import datetime
import json
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from launching import CONFIGS

from etd_ds.bert import checkpoint
from etd_ds.contract import errors, rundir
from etd_ds.distill.stopping import Stop
from etd_ds.engine.ranks import Ranks
from etd_ds.stages import distill
from etd_ds.stages.seat import Seat


@pytest.fixture
def trainers(make_run, small_world, monkeypatch):
    """Two ranks of one run; they have a rendezvous store, and no collectives."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    settings = distill.check([make_run()], ds_config=CONFIGS / "cpu.json", world_size=2)
    ranks = [Ranks(rank, 2, rank, torch.device("cpu")) for rank in range(2)]
    return [distill.Trainer([], settings, cache=small_world[2], ranks=rank, stop=Stop()) for rank in ranks]


def test_no_rank_goes_on_before_all_have_opened_the_corpus(trainers, monkeypatch):
    """However long one takes: what follows are collectives, which have a time-out."""
    opened, prepare = threading.Event(), distill.data.prepare

    def late(*args, progress, **options):
        if not progress:
            opened.wait()
        return prepare(*args, progress=False, **options)

    monkeypatch.setattr(distill.data, "prepare", late)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(trainer._data) for trainer in trainers)
        try:
            with pytest.raises(concurrent.futures.TimeoutError):
                first.result(3)
        finally:
            opened.set()
        assert first.result(30).manifest.key == second.result(30).manifest.key


@pytest.mark.parametrize(("rows", "layout", "says"), [(0, "packed", "no training sequences"), (5, "pairs", "in pairs")])
def test_a_corpus_that_cannot_be_trained_on_is_refused_by_the_first_rank(trainers, monkeypatch, rows, layout, says):
    """Also one that was prepared before, whose layout the spec does not say."""
    monkeypatch.setattr("etd_ds.engine.ranks.PARTING", datetime.timedelta(0))  # the second rank hears nothing here
    corpus = SimpleNamespace(train=range(rows), manifest=SimpleNamespace(options=SimpleNamespace(layout=layout)))
    monkeypatch.setattr(distill.data, "prepare", lambda *_, **__: corpus)
    teacher = trainers[0]._teacher
    trainers[0].__dict__["_teacher"] = replace(teacher, shape=teacher.shape.model_copy(update={"token_types": 1}))
    with pytest.raises(errors.CorpusError, match=says):
        trainers[0]._data()


@pytest.fixture
def students(monkeypatch, small_world):
    """A function that checks the student of a run folder against its teacher, as one rank does before any work."""
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", dist.HashStore)

    def check(run):
        settings = distill.check([run], ds_config=CONFIGS / "cpu.json", world_size=1)
        ranks = Ranks(0, 1, 0, torch.device("cpu"))
        trainer = distill.Trainer([Seat(run, None)], settings, cache=small_world[2], ranks=ranks, stop=Stop())
        monkeypatch.setattr(trainer, "_data", _reach)
        trainer.train()

    return check


class Reached(Exception):
    """Nothing was wrong, and the work begins."""


def _reach():
    raise Reached


@pytest.mark.parametrize("older", [False, True], ids=["tokenizer.json", "vocab.txt alone"])
@pytest.mark.parametrize("changes", [{}, {"mode": "none"}, {"ffn": 40}])
def test_a_student_that_we_extracted_fits_its_teacher(students, make_run, small_world, tmp_path, changes, older):
    teacher = shutil.copytree(small_world[0], tmp_path / "teacher")
    if older:
        (teacher / "tokenizer.json").unlink()
    with pytest.raises(Reached):
        students(make_run(teacher=str(teacher), **changes))


@pytest.mark.parametrize(
    ("key", "got", "name"),
    [
        ("num_attention_heads", 2, "heads"),
        ("hidden_size", 28, "hidden"),
        ("max_position_embeddings", 64, "positions"),
        ("vocab_size", 30600, "vocab"),
    ],
)
def test_a_student_of_other_sizes_is_refused(students, make_run, key, got, name):
    run = make_run()
    config = checkpoint.read_config(run.init)
    rundir.publish_json(run.init / "config.json", config | {key: got})
    with pytest.raises(
        errors.RunFolderError, match=f"wanted a student with {name} {config[key]}, .* got {name} {got};"
    ):
        students(run)


def test_a_student_with_another_tokenizer_is_refused(students, make_run):
    run = make_run()
    content = json.loads((run.init / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    rundir.publish_json(run.init / "tokenizer.json", content)
    with pytest.raises(errors.RunFolderError, match="wanted the tokenizer of the teacher"):
        students(run)


def test_a_student_of_another_teacher_is_refused_however_alike_they_are(students, make_run):
    run = make_run()
    run.plan.unlink()  # as in a folder that was made by hand
    content = json.loads((run.init / "extraction.json").read_text())
    content["teacher"] |= {"reference": "org/other@1", "sha256": "0" * 64}
    rundir.publish_json(run.init / "extraction.json", content)
    with pytest.raises(errors.RunFolderError, match=r"teacher: wanted org/other@1, from which .* got "):
        students(run)
