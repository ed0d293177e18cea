"""What it means to cut a student from a teacher, as laws between two stock models in fp64."""

import dataclasses
import math

import pytest
import random_berts as rb
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel

from etd_ds.contract import shape as shapes
from etd_ds.contract import spec, teachers
from etd_ds.contract.shape import EncoderShape
from etd_ds.extract import apply, axes, importance, plan

ARCHITECTURES = sorted(rb.PARTS)
few = settings(max_examples=25, deadline=None)


def whole(teacher: EncoderShape) -> spec.JobSpec:
    return spec.JobSpec(layers=teacher.layers, hidden=teacher.hidden, ffn=teacher.ffn, mode="rand", seq_length=8)


def drawn(teacher: EncoderShape, job: spec.JobSpec) -> plan.Cut:
    return plan.drawn(job, teacher, shapes.student(job, teacher))


def hooked(modules_and_masks):
    """Zero the components where the mask is 0 in what each module gives."""
    return [
        module.register_forward_hook(lambda _m, _i, out, mask=mask: out * mask) for module, mask in modules_and_masks
    ]


def mask_of(kept: torch.Tensor, size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.float64).index_fill_(0, kept, 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_of_the_stock_class_stands_in_the_axis_table(architecture):
    teacher = EncoderShape(layers=2, hidden=12, heads=3, ffn=20, vocab=17, positions=11, token_types=2)
    stock = {name: tuple(value.shape) for name, value in rb.state_of(rb.random_bert(architecture, teacher)).items()}
    assert axes.shapes(teacher, rb.PARTS[architecture]) == stock


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@few
@given(rb.shapes())
def test_any_cut_loads_into_the_stock_class_of_the_students_shape(architecture, asked):
    teacher, job = asked
    state = rb.state_of(rb.random_bert(architecture, teacher))
    student = apply.student(state, drawn(teacher, job), rb.PARTS[architecture])
    rb.model_of(architecture, shapes.student(job, teacher), student)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@few
@given(rb.shapes())
def test_keeping_everything_gives_the_teacher_bit_for_bit(architecture, asked):
    teacher, _ = asked
    state = rb.state_of(rb.random_bert(architecture, teacher))
    student = apply.student(state, drawn(teacher, whole(teacher)), rb.PARTS[architecture])
    assert student.keys() == state.keys()
    assert all(torch.equal(student[name], state[name]) for name in state)


def an_ffn_slice_is_the_teacher_with_those_neurons_silenced(model, teacher, job):
    cut = drawn(teacher, job)
    sliced = apply.student(rb.state_of(model), cut, rb.PARTS["BertModel"])
    student = rb.model_of("BertModel", shapes.student(job, teacher), sliced)
    hooked(
        (model.encoder.layer[i].intermediate, mask_of(layer.ffn_F, teacher.ffn)) for i, layer in enumerate(cut.layers)
    )
    feed = rb.inputs(teacher)
    torch.testing.assert_close(student(**feed).last_hidden_state, model(**feed).last_hidden_state)


@few
@given(rb.shapes(), st.data())
def test_an_ffn_slice_is_the_teacher_with_those_neurons_silenced(asked, data):
    teacher, _ = asked
    job = whole(teacher).model_copy(update={"ffn": data.draw(st.integers(1, teacher.ffn))})
    an_ffn_slice_is_the_teacher_with_those_neurons_silenced(rb.random_bert("BertModel", teacher), teacher, job)


def a_head_slice_is_the_teacher_with_those_components_silenced(model, teacher, keep):
    """Only heads are thinned, which no stock class can hold: hidden stays, so the law is checked layer by layer."""
    narrow = whole(teacher).model_copy(update={"hidden": keep * teacher.heads})
    cut = drawn(teacher, narrow)
    everything = torch.arange(teacher.hidden)
    layers = tuple(dataclasses.replace(one, attention_H=everything, ffn_H=everything) for one in cut.layers)
    cut = plan.Cut(layers, everything, everything)
    state = apply.student(rb.state_of(model), cut, rb.PARTS["BertModel"])
    x_BSH = torch.randn(2, 5, teacher.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def split(y_BSC):
        return y_BSC.unflatten(-1, (teacher.heads, -1)).transpose(1, 2)

    for i, layer in enumerate(model.encoder.layer):
        own = {name: state[f"encoder.layer.{i}.attention.{name}"] for name in axes_of_attention()}
        linear = torch.nn.functional.linear
        q, k, v = (
            split(linear(x_BSH, own[f"self.{name}.weight"], own[f"self.{name}.bias"]))
            for name in ("query", "key", "value")
        )
        mask = mask_of(cut.layers[i].context_C, teacher.hidden)
        stock = layer.attention.self
        qt, kt, vt = (split(module(x_BSH) * mask) for module in (stock.query, stock.key, stock.value))
        scores, wanted = q @ k.mT / math.sqrt(keep), qt @ kt.mT / math.sqrt(teacher.head_size)
        # Q/K slice, times √(d_S/d_T), = those components zeroed
        torch.testing.assert_close(scores * math.sqrt(keep / teacher.head_size), wanted)
        # V/O slice = those context components zeroed
        probabilities = wanted.softmax(-1)
        context, context_t = ((probabilities @ value).transpose(1, 2).flatten(2) for value in (v, vt))
        got = linear(context, own["output.dense.weight"], own["output.dense.bias"])
        torch.testing.assert_close(got, layer.attention.output.dense(context_t))


@few
@given(rb.shapes(), st.data())
def test_a_head_slice_is_the_teacher_with_those_components_silenced_up_to_the_softmax_scale(asked, data):
    teacher, _ = asked
    keep = data.draw(st.integers(1, teacher.head_size))
    a_head_slice_is_the_teacher_with_those_components_silenced(rb.random_bert("BertModel", teacher), teacher, keep)


def axes_of_attention():
    return [name.removeprefix("attention.") for name in axes.LAYER_TABLE if name.startswith("attention.")]


class KeptNorm(torch.nn.Module):
    """A LayerNorm that looks only at the kept dimensions and gives zero elsewhere."""

    def __init__(self, norm: torch.nn.LayerNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x):
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        seen = torch.nn.functional.layer_norm(x[..., self.kept], self.kept.shape, weight, bias, self.norm.eps)
        return torch.zeros_like(x).index_copy(-1, self.kept, seen)


def a_hidden_slice_is_a_teacher_whose_layer_norms_see_only_the_kept(model, architecture, teacher, narrow):
    """The outputs of both. Heads are thinned along with hidden; to see hidden alone, the same components are
    silenced in the teacher, and the student's own 1/√d is made up for."""
    cut, student_shape = drawn(teacher, narrow), shapes.student(narrow, teacher)
    sliced = apply.student(rb.state_of(model), cut, rb.PARTS[architecture])
    for name, value in sliced.items():
        if ".self.query." in name:
            value.mul_(math.sqrt(student_shape.head_size / teacher.head_size))
    student = rb.model_of(architecture, student_shape, sliced)
    bert, kept = getattr(model, "bert", model), cut.embeddings_H
    silenced = [(bert.pooler, mask_of(kept, teacher.hidden))]
    for i, layer in enumerate(cut.layers):
        attention = bert.encoder.layer[i].attention.self
        mask = mask_of(layer.context_C, teacher.hidden)
        silenced += [(module, mask) for module in (attention.query, attention.key, attention.value)]
    hooked(silenced)
    for module in list(model.modules()):
        if isinstance(getattr(module, "LayerNorm", None), torch.nn.LayerNorm):
            module.LayerNorm = KeptNorm(module.LayerNorm, kept)
    feed = rb.inputs(teacher)
    got, wanted = student(**feed, output_hidden_states=True), model(**feed, output_hidden_states=True)
    torch.testing.assert_close(got.hidden_states[-1], wanted.hidden_states[-1][..., kept])
    return got, wanted, kept


@few
@given(rb.shapes())
def test_a_hidden_slice_is_a_teacher_whose_layer_norms_see_only_the_kept_dimensions(asked):
    """All parts at once: embeddings, layers, pooler, NSP, MLM transform and the tied decoder."""
    teacher, job = asked
    narrow = whole(teacher).model_copy(update={"hidden": job.hidden, "seed": job.seed})
    model = rb.random_bert("BertForPreTraining", teacher)
    got, wanted, _ = a_hidden_slice_is_a_teacher_whose_layer_norms_see_only_the_kept(
        model, "BertForPreTraining", teacher, narrow
    )
    torch.testing.assert_close(got.prediction_logits, wanted.prediction_logits)
    torch.testing.assert_close(got.seq_relationship_logits, wanted.seq_relationship_logits)


@pytest.mark.parametrize("law", ["ffn", "head", "hidden"])
def test_the_laws_hold_for_the_packaged_teacher(law):
    model = BertModel.from_pretrained(teachers.embedded_folder(), attn_implementation="sdpa").double().eval()
    teacher = EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)
    job = spec.JobSpec(layers=6, hidden=384, ffn=1536, mode="rand")
    match law:
        case "ffn":
            an_ffn_slice_is_the_teacher_with_those_neurons_silenced(model, teacher, job.model_copy(update={"ffn": 700}))
        case "head":
            a_head_slice_is_the_teacher_with_those_components_silenced(model, teacher, keep=16)
        case "hidden":
            narrow = job.model_copy(update={"hidden": 192})
            got, wanted, kept = a_hidden_slice_is_a_teacher_whose_layer_norms_see_only_the_kept(
                model, "BertModel", teacher, narrow
            )
            torch.testing.assert_close(got.pooler_output, wanted.pooler_output[..., kept])


@few
@given(rb.shapes(), st.randoms(use_true_random=False))
def test_the_order_of_the_teachers_ffn_neurons_does_not_matter(asked, random):
    teacher, job = asked
    job = job.model_copy(update={"mode": "impt"})
    student_shape = shapes.student(job, teacher)
    model = rb.random_bert("BertModel", teacher)
    state = rb.state_of(model)
    generator = torch.Generator().manual_seed(3)
    scores = importance.Scores(
        *(
            torch.rand(teacher.layers, n, generator=generator, dtype=torch.float64)
            for n in (teacher.ffn, *[teacher.hidden] * 3)
        )
    )
    order_F = torch.tensor(random.sample(range(teacher.ffn), teacher.ffn))
    shuffled = {}
    for name, value in state.items():
        names = dict(axes.table(teacher.layers, rb.PARTS["BertModel"]))[name]
        shuffled[name] = value.index_select(names.index("F"), order_F) if "F" in names else value
    other_scores = dataclasses.replace(scores, ffn_LF=scores.ffn_LF[:, order_F])
    students = [
        rb.model_of(
            "BertModel",
            student_shape,
            apply.student(one, plan.scored(job, teacher, student_shape, s), rb.PARTS["BertModel"]),
        )
        for one, s in ((state, scores), (shuffled, other_scores))
    ]
    feed = rb.inputs(teacher)
    torch.testing.assert_close(students[0](**feed).last_hidden_state, students[1](**feed).last_hidden_state)
