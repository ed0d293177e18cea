"""Which neurons are kept."""

import random_berts as rb
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etd_ds.contract import shape as shapes
from etd_ds.contract import spec
from etd_ds.contract.shape import BERT_BASE, EncoderShape
from etd_ds.extract import importance, plan

TEACHER = EncoderShape(layers=3, hidden=12, heads=3, ffn=10, vocab=13, positions=9)
few = settings(max_examples=50, deadline=None)


def job(**fields) -> spec.JobSpec:
    return spec.JobSpec(**{"layers": 2, "hidden": 6, "ffn": 4, "seq_length": 8, **fields})


def scores(seed: int = 0) -> importance.Scores:
    generator = torch.Generator().manual_seed(seed)
    sizes = (TEACHER.ffn, TEACHER.hidden, TEACHER.hidden, TEACHER.hidden)
    return importance.Scores(*(torch.rand(3, n, generator=generator, dtype=torch.float64) for n in sizes))


def cut(asked: spec.JobSpec, given_scores: importance.Scores | None = None) -> plan.Cut:
    student = shapes.student(asked, TEACHER)
    if asked.mode == "rand":
        return plan.drawn(asked, TEACHER, student)
    return plan.scored(asked, TEACHER, student, given_scores or scores())


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_the_top_are_the_highest_and_the_lower_index_wins_a_tie(values, data):
    keep = data.draw(st.integers(1, len(values)))
    wanted = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])
    assert plan.top(torch.tensor(values, dtype=torch.float64), keep).tolist() == wanted
    lowest = sorted(sorted(range(len(values)), key=lambda i: (values[i], i))[:keep])
    assert plan.top(torch.tensor(values, dtype=torch.float64), keep, reverse=True).tolist() == lowest


@few
@given(rb.shapes())
def test_index_sets_ascend_have_the_students_sizes_and_lie_in_the_teacher(asked):
    teacher, request = asked
    student = shapes.student(request, teacher)
    kept = plan.drawn(request, teacher, student)

    def good(indices: torch.Tensor, size: int, limit: int) -> bool:
        values = indices.tolist()
        return len(values) == size and values == sorted(set(values)) and values[0] >= 0 and values[-1] < limit

    assert len(kept.layers) == student.layers
    assert kept.consistent
    assert good(kept.embeddings_H, student.hidden, teacher.hidden)
    for layer in kept.layers:
        assert good(layer.ffn_F, student.ffn, teacher.ffn)
        assert good(layer.context_C, student.hidden, teacher.hidden)
        assert all(good(one_D, student.head_size, teacher.head_size) for one_D in layer.heads_ND)


def test_a_draw_depends_on_seed_kind_teacher_layer_and_head_alone():
    shallow = cut(job(mode="rand", layers=1, layer_selection=[2]))
    deep = cut(job(mode="rand", layers=3))
    assert torch.equal(shallow.layers[0].heads_ND, deep.layers[1].heads_ND)
    assert torch.equal(shallow.layers[0].ffn_F, deep.layers[1].ffn_F)
    assert torch.equal(shallow.embeddings_H, deep.embeddings_H)
    big = spec.JobSpec(layers=6, hidden=384, mode="rand")
    one, again = (plan.drawn(big, BERT_BASE, shapes.student(big, BERT_BASE)) for _ in range(2))
    assert one.manifest() == again.manifest()
    sets = [tuple(layer.ffn_F.tolist()) for layer in one.layers]
    sets += [tuple(head.tolist()) for layer in one.layers for head in layer.heads_ND]
    assert len(set(sets)) == len(sets)
    other = plan.drawn(big.model_copy(update={"seed": 1}), BERT_BASE, shapes.student(big, BERT_BASE))
    assert other.manifest()["hidden"] != one.manifest()["hidden"]


def test_hidden_dimensions_are_chosen_by_the_sum_over_all_teacher_layers_also_those_not_drawn():
    given_scores = scores()
    kept = cut(job(layers=1, layer_selection=[2]), given_scores)
    assert kept.embeddings_H.tolist() == plan.top(given_scores.hidden_LH.sum(0), 6).tolist()


def test_reverse_keeps_the_complement_of_a_half():
    kept, lowest = cut(job()), cut(job(reverse=["hidden"]))
    assert set(kept.embeddings_H.tolist()) | set(lowest.embeddings_H.tolist()) == set(range(12))
    assert torch.equal(kept.layers[0].ffn_F, lowest.layers[0].ffn_F)
    assert torch.equal(kept.layers[0].heads_ND, lowest.layers[0].heads_ND)
    heads = cut(job(reverse=["head"]))
    assert set(kept.layers[0].context_C.tolist()) | set(heads.layers[0].context_C.tolist()) == set(range(12))


def test_without_hidden_consistency_each_module_keeps_its_own_dimensions():
    given_scores = scores()
    kept = cut(job(hidden_consistency=False), given_scores)
    assert not kept.consistent
    for layer in kept.layers:
        row = layer.teacher_layer - 1
        assert layer.attention_H.tolist() == plan.top(given_scores.hidden_LH[row], 6).tolist()
        assert layer.ffn_H.tolist() == plan.top(given_scores.middle_LH[row], 6).tolist()
    assert kept.embeddings_H.tolist() == plan.top(given_scores.hidden_LH[0], 6).tolist()
    assert torch.equal(kept.top_H, kept.layers[-1].ffn_H)
    assert {"hidden_attention", "hidden_ffn"} <= kept.manifest()["layers"][0].keys()


def test_distilberts_copy_keeps_the_width_and_every_other_layer():
    request = spec.JobSpec(layers=6, hidden=768, mode="rand", layer_selection=[1, 3, 5, 8, 10, 12])
    kept = plan.drawn(request, BERT_BASE, shapes.student(request, BERT_BASE))
    assert [layer.teacher_layer for layer in kept.layers] == [1, 3, 5, 8, 10, 12]
    assert kept.embeddings_H.tolist() == list(range(768))
    assert all(layer.ffn_F.tolist() == list(range(3072)) for layer in kept.layers)
    assert all(layer.context_C.tolist() == list(range(768)) for layer in kept.layers)
