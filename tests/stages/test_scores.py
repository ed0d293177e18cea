"""Scores are computed once for all that decides them, survive an interruption, and are never trusted unchecked."""

import json
import os
import subprocess
import sys
import threading

import pytest
import small_teacher
import torch

from etd_ds import data
from etd_ds.bert import checkpoint
from etd_ds.contract import errors, launch, spec
from etd_ds.data import tokenize
from etd_ds.extract import importance
from etd_ds.stages import scores, sentences

COUNT = 40


def job(teacher, corpus, **fields) -> spec.JobSpec:
    given = {"layers": 2, "hidden": 6, "ffn": 8, "seq_length": 16, "importance_sentences": COUNT, "mlm_head_steps": 3}
    return spec.JobSpec(**(given | {"teacher": str(teacher), "corpus": str(corpus)} | fields))


def find(asked: spec.JobSpec, cache, report=None) -> scores.Found:
    teacher = checkpoint.resolve(asked.teacher, cache)
    return scores.find(asked, teacher, checkpoint.read_weights(teacher.folder), cache=cache, report=report)


def same(one: importance.Scores, other: importance.Scores) -> bool:
    return all(torch.equal(value, getattr(other, name)) for name, value in one.as_dict().items())


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sentences, "BATCH_TOKENS", 24)


def entries(cache):
    return sorted(path for path in (cache / "scores").iterdir() if path.is_dir())


def test_the_second_request_finds_what_the_first_computed(teacher, corpus, tmp_path):
    first = find(job(teacher, corpus), tmp_path)
    told = []
    second = find(job(teacher, corpus, layers=1, hidden=3, learning_rate=1e-3), tmp_path, lambda *x: told.append(x))
    assert (first.cached, second.cached) == (False, True)
    assert same(first.scores, second.scores)
    assert told == []
    assert first.provenance == second.provenance
    assert first.provenance["mlm_head"]["fitted"] is True
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"importance_sentences": 39}, {"importance_reduction": "per_sequence"}, {"mlm_head_steps": 4}],
    ids=str,
)
def test_whatever_changes_the_scores_changes_their_key(teacher, corpus, tmp_path, change):
    first = find(job(teacher, corpus), tmp_path)
    other = find(job(teacher, corpus, **change), tmp_path)
    assert not other.cached
    assert not same(first.scores, other.scores)


def test_a_damaged_entry_is_noticed_and_computed_again(teacher, corpus, tmp_path):
    first = find(job(teacher, corpus), tmp_path)
    (folder,) = entries(tmp_path)
    file = folder / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = find(job(teacher, corpus), tmp_path)
    assert not again.cached
    assert same(first.scores, again.scores)
    assert find(job(teacher, corpus), tmp_path).cached


def test_simultaneous_requests_compute_once(teacher, corpus, tmp_path):
    gate, found = threading.Barrier(3), []

    def ask():
        gate.wait()
        found.append(find(job(teacher, corpus), tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.cached for one in found) == [False, True, True]
    assert all(same(found[0].scores, one.scores) for one in found)


class Interrupted(Exception):
    pass


def test_an_interrupted_pass_is_taken_up_where_it_was(teacher, corpus, tmp_path, monkeypatch):
    whole = find(job(teacher, corpus), tmp_path / "whole")
    monkeypatch.setattr(scores, "SAVE_EVERY_SECONDS", -1.0)

    def interrupt(stage, done, total):
        if stage == "score neurons" and done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        find(job(teacher, corpus), tmp_path, interrupt)
    told = []
    resumed = find(job(teacher, corpus), tmp_path, lambda stage, done, total: told.append((stage, done)))
    # the fitted head was kept; the fifth batch was scored but not saved, so it is the first one now
    assert told[0] == ("score neurons", 5)
    assert same(whole.scores, resumed.scores)
    assert len(entries(tmp_path)) == 1


def test_batching_does_not_change_per_token_scores(teacher, corpus, tmp_path, monkeypatch):
    one = find(job(teacher, corpus), tmp_path / "one").scores
    monkeypatch.setattr(sentences, "BATCH_TOKENS", 1)
    other = find(job(teacher, corpus), tmp_path / "other").scores
    for name, value in one.as_dict().items():
        torch.testing.assert_close(value, getattr(other, name), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kind", "loss"), [("BertForMaskedLM", "MLM"), ("BertForPreTraining", "MLM + NSP")])
def test_a_teachers_own_heads_are_used(corpus, tmp_path, kind, loss):
    teacher = small_teacher.write(tmp_path / "teacher", kind)
    told = []
    found = find(job(teacher, corpus), tmp_path / "cache", lambda stage, done, total: told.append(stage))
    assert set(told) == {"score neurons"}
    assert found.provenance["loss"] == loss
    assert found.provenance["mlm_head"] == {"fitted": False}
    assert all(bool((value > 0).all()) for value in found.scores.as_dict().values())
    # the length of fitting is no part of the key then
    assert find(job(teacher, corpus, mlm_head_steps=9), tmp_path / "cache").cached


def test_every_sentence_is_scored_once_and_no_batch_has_padding(teacher, corpus):
    lines = data.sentences(str(corpus), COUNT)
    tokenizer = tokenize.open_tokenizer(teacher)
    text = sentences.read(lines, tokenizer, len(small_teacher.VOCABULARY))
    for pairs in (False, True):
        batches = sentences.batches(text, positions=64, seed=0, pairs=pairs)
        assert sum(len(batch.ids_BS) for batch in batches) == (COUNT // 2 if pairs else COUNT)
        tokens = sum(batch.ids_BS.numel() for batch in batches)
        specials = COUNT // 2 * 3 if pairs else COUNT * 2
        assert tokens == sum(len(ids) for ids in text.ids) + specials
        # what was hidden stands in the labels: put back, every sentence is there again
        restored = [
            torch.where(batch.labels_BS >= 0, batch.labels_BS, batch.ids_BS)[:, 1:].flatten() for batch in batches
        ]
        counts = torch.bincount(torch.cat(restored), minlength=text.vocab)
        counts[text.special.sep] = 0
        assert torch.equal(counts, text.frequency())
    labels = torch.cat([batch.nsp_B for batch in batches])
    assert 0 < labels.float().mean() < 1


def test_pairs_that_go_on_are_of_one_document_and_no_sentence_is_lost(teacher, corpus):
    lines = data.sentences(str(corpus), COUNT)
    sizes = [3, 1, 4, 2, 5, 1, 1, 7, 3, 4, 2, 6, 1]
    assert sum(sizes) == COUNT
    places = [(document, index) for document, size in enumerate(sizes) for index in range(size)]
    text = sentences.read(lines, tokenize.open_tokenizer(teacher), len(small_teacher.VOCABULARY), sizes)
    place = {tuple(ids.tolist()): where for ids, where in zip(text.ids, places, strict=True)}
    assert len(place) == COUNT
    seen, labels = [], []
    for batch in sentences.batches(text, positions=64, seed=0, pairs=True):
        whole = torch.where(batch.labels_BS >= 0, batch.labels_BS, batch.ids_BS)[:, 1:]
        for row, ids in enumerate(whole.tolist()):
            ends = [i for i, one in enumerate(ids) if one == text.special.sep]
            found = [place[tuple(ids[a:b])] for a, b in zip([0, *(i + 1 for i in ends)], ends, strict=False)]
            seen += found
            if batch.nsp_B is None:
                assert found == [(found[0][0], sizes[found[0][0]] - 1)]
                assert sizes[found[0][0]] % 2 == 1
            else:
                (first, second), label = found, int(batch.nsp_B[row])
                assert (second == (first[0], first[1] + 1)) == (label == 0)
                assert label == 0 or second[0] != first[0]
                labels.append(label)
    assert sorted(seen) == places
    assert len(labels) == sum(size // 2 for size in sizes)
    assert 0 < sum(labels) < len(labels)


def test_where_documents_end_is_part_of_the_key_when_pairs_are_scored(tmp_path):
    (tmp_path / "a.txt").write_text("The king ruled. He built.\n\nShe lies near the sea. It was old.")
    (tmp_path / "b.txt").write_text("The king ruled. He built. She lies near the sea.\n\nIt was old.")
    for kind, cached in (("BertForMaskedLM", True), ("BertForPreTraining", False)):
        teacher = small_teacher.write(tmp_path / kind, kind)
        first, other = (
            find(job(teacher, tmp_path / name, importance_sentences=4), tmp_path / "cache")
            for name in ("a.txt", "b.txt")
        )
        assert (first.cached, other.cached) == (False, cached)
        assert first.corpus_sha256 == other.corpus_sha256


def test_sentences_without_a_token_are_passed_over_and_nothing_else_is_refused(teacher):
    tokenizer = tokenize.open_tokenizer(teacher)
    text = sentences.read(["The king ruled.", "\u200b"], tokenizer, len(small_teacher.VOCABULARY))
    assert [len(ids) for ids in text.ids] == [4, 0]
    assert sum(batch.ids_BS.numel() for batch in sentences.batches(text, positions=16, seed=0, pairs=True)) == 4 + 3
    assert next(sentences.fit_batches(text, seed=0, positions=8)).ids_BS.shape == (16, 8)
    with pytest.raises(errors.CorpusError, match="no word"):
        sentences.read(["\u200b"], tokenizer, len(small_teacher.VOCABULARY))


def test_too_few_sentences_and_an_empty_corpus_are_refused_and_nothing_is_written(teacher, corpus, tmp_path):
    with pytest.raises(errors.CorpusError, match=r"wanted 1000 sentences.*holds \d+"):
        find(job(teacher, corpus, importance_sentences=1000), tmp_path / "cache")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(errors.CorpusError):
        find(job(teacher, tmp_path / "empty.txt"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("kind", "message"), [("BertModel", "was masked"), ("BertForPreTraining", "at least 2")])
def test_one_short_sentence_is_not_enough(corpus, tmp_path, kind, message):
    teacher = small_teacher.write(tmp_path / "teacher", kind)
    (tmp_path / "one.txt").write_text("A king.")
    with pytest.raises(errors.CorpusError, match=message) as caught:
        find(job(teacher, tmp_path / "one.txt", importance_sentences=1, seed=1), tmp_path / "cache")
    assert caught.value.field == "importance_sentences"


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one(teacher, corpus, tmp_path):
    """Under torchrun each rank scores every second batch; the sums are those of one rank to fp64 rounding."""
    flags = ["--teacher", str(teacher), "--corpus", str(corpus), "--importance-sentences", str(COUNT)]
    flags += ["--mlm-head-steps", "3", "--quiet"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    for name, start in (("one", [sys.executable]), ("two", [*torchrun, str(launch.free_port())])):
        command = [*start, "-m", "etd_ds.cli", "scores", "--cache", str(tmp_path / name), *flags]
        # torchrun gives each rank one thread; another number may round a head's fp32 sums differently
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["cached"] is False
    one, two = (find(job(teacher, corpus), tmp_path / name) for name in ("one", "two"))
    assert (one.cached, two.cached) == (True, True)
    for name, value in one.scores.as_dict().items():
        torch.testing.assert_close(value, getattr(two.scores, name), rtol=1e-12, atol=0)
