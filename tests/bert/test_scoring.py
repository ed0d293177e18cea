"""One pass over equal-length batches gives what the plain definition gives: stock model, padding, full autograd."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from etd_ds.bert import head_fit, scoring
from etd_ds.contract.shape import EncoderShape
from etd_ds.extract import importance

SHAPE = EncoderShape(layers=3, hidden=12, heads=3, ffn=10, vocab=40, positions=12)
LENGTHS = (7, 7, 4, 7, 12)
NSP_WEIGHT = 2.5


def stock(kind):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=12,
        attn_implementation="sdpa",
    )
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def sequences():
    """Per sequence: ids, types, labels (none in the third one), NSP label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(40, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.3, ids.flip(0), scoring.IGNORED)
        labels[-1] = scoring.IGNORED if i == 2 else ids[0]
        if i == 2:
            labels[:] = scoring.IGNORED
        found.append((ids, (torch.arange(length) > length // 2).long(), labels, i % 2))
    return found


def heads_of(model):
    state = dict(model.named_parameters())
    return {
        name.removeprefix("bert."): value for name, value in state.items() if name.startswith(("cls.", "bert.pooler"))
    }


def batches(sequences, pairs):
    """Equal lengths together."""
    by_length = {}
    for one in sequences:
        by_length.setdefault(len(one[0]), []).append(one)
    for same in by_length.values():
        ids, types, labels, nsp = zip(*same, strict=True)
        yield scoring.Batch(*(torch.stack(x) for x in (ids, types, labels)), torch.tensor(nsp) if pairs else None)


def plain(model, sequences, pairs):
    """field -> (h, g) of every layer, (L, B, S, X): one padded batch, gradients by autograd through the stock model."""
    width = max(LENGTHS)

    def padded(k, value):
        return torch.stack([F.pad(one[k], (0, width - len(one[k])), value=value) for one in sequences])

    mask = torch.stack([torch.arange(width) < len(one[0]) for one in sequences]).long()
    taps = {"ffn_LF": [], "head_LC": [], "hidden_LH": [], "middle_LH": []}
    handles = []

    def keep(field):
        def hook(_module, args):
            args[0].retain_grad()
            taps[field].append(args[0])

        return hook

    for layer in model.bert.encoder.layer:
        for field, module in (
            ("ffn_LF", layer.output.dense),
            ("head_LC", layer.attention.output.dense),
            ("hidden_LH", layer),
            ("middle_LH", layer.intermediate),
        ):
            handles.append(module.register_forward_pre_hook(keep(field)))
    output = model(padded(0, 0), token_type_ids=padded(1, 0), attention_mask=mask)
    logits = output.prediction_logits if pairs else output.logits
    loss = F.cross_entropy(logits.flatten(0, 1), padded(2, scoring.IGNORED).flatten(), reduction="sum")
    if pairs:
        nsp = torch.tensor([one[3] for one in sequences])
        loss = loss + NSP_WEIGHT * F.cross_entropy(output.seq_relationship_logits, nsp, reduction="sum")
    loss.backward()
    for handle in handles:
        handle.remove()
    return loss.item(), {
        field: (torch.stack(list(hs)).detach(), torch.stack([h.grad for h in hs])) for field, hs in taps.items()
    }


def scored(model, all_batches, reduction):
    scores = importance.zeros(SHAPE)
    loss = 0.0
    for batch in all_batches:
        loss += scoring.accumulate(
            scores, model.bert, heads_of(model), batch, nsp_weight=NSP_WEIGHT, reduction=reduction
        )
    return loss, scores


KINDS = [(BertForMaskedLM, False), (BertForPreTraining, True)]


@pytest.mark.parametrize(("kind", "pairs"), KINDS)
@pytest.mark.parametrize("reduction", ["per_token", "per_sequence"])
def test_scores_are_those_of_the_plain_definition(kind, pairs, reduction, sequences):
    model = stock(kind)
    wanted_loss, taps = plain(model, sequences, pairs)
    model.zero_grad()
    loss, scores = scored(model.requires_grad_(False), batches(sequences, pairs), reduction)
    assert loss == pytest.approx(wanted_loss, rel=1e-12)
    for field, (h, g) in taps.items():
        wanted = (h * g).abs().sum((1, 2)) if reduction == "per_token" else (h * g).sum(2).abs().sum(1)
        torch.testing.assert_close(getattr(scores, field), wanted, msg=lambda text, field=field: f"{field}: {text}")
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "pairs"), KINDS)
def test_per_batch_takes_the_absolute_value_of_the_whole_batch(kind, pairs, sequences):
    model = stock(kind)
    same = [one for one in sequences if len(one[0]) == 7]
    _, taps = plain(model, same, pairs)
    _, scores = scored(model.requires_grad_(False), batches(same, pairs), "per_batch")
    for field, (h, g) in taps.items():
        torch.testing.assert_close(getattr(scores, field), (h * g).sum((1, 2)).abs())


def test_an_ffn_neurons_signed_sum_equals_that_of_its_output_column(sequences):
    """Free check of the hooks: Σ_tokens h·∂L/∂h = Σ_outputs w·∂L/∂w for `output.dense`'s column."""
    model = stock(BertForMaskedLM)
    same = [one for one in sequences if len(one[0]) == 7]
    plain(model, same, False)
    columns = []
    for layer in model.bert.encoder.layer:
        weight_HF = layer.output.dense.weight
        columns.append((weight_HF * weight_HF.grad).sum(0).abs().detach())
    model.zero_grad()
    _, scores = scored(model.requires_grad_(False), batches(same, False), "per_batch")
    torch.testing.assert_close(scores.ffn_LF, torch.stack(columns))


def test_scores_of_shards_add_up_to_those_of_the_whole(sequences):
    model = stock(BertForMaskedLM).requires_grad_(False)
    everything = list(batches(sequences, False))
    _, whole = scored(model, everything, "per_token")
    parts = [scored(model, everything[r::2], "per_token")[1] for r in range(2)]
    for field, value in importance.merged(parts).as_dict().items():
        torch.testing.assert_close(value, getattr(whole, field), rtol=1e-14, atol=0)


def test_the_written_out_cross_entropy_is_autograds(monkeypatch):
    monkeypatch.setattr(scoring, "DECODE_ROWS", 3)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(8, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    decoder = torch.randn(11, 5, dtype=torch.float64, generator=generator) * 4
    bias = torch.randn(11, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(11, (8,), generator=generator)
    wanted = F.cross_entropy(z @ decoder.T + bias, labels, reduction="sum")
    dz, dbias = torch.autograd.grad(wanted, (z, bias))
    loss, got_dz, got_dbias = scoring.decode(z, decoder, bias, labels)
    assert loss == pytest.approx(wanted.item(), rel=1e-13)
    torch.testing.assert_close(got_dz, dz)
    torch.testing.assert_close(got_dbias, dbias)


def test_a_fitted_head_learns_and_leaves_the_encoder_alone(sequences):
    torch.manual_seed(3)
    bert: BertModel = stock(BertForMaskedLM).bert.float().requires_grad_(False)
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    batch = next(batches([one for one in sequences if len(one[0]) == 7], False))

    def endless():
        while True:
            yield batch

    def fit():
        generator = torch.Generator().manual_seed(0)
        return head_fit.fit(bert, endless(), steps=150, frequency_V=torch.ones(40), generator=generator)

    fitted = fit()
    assert fitted.losses[-1] < 0.7 * fitted.losses[0]
    assert all(torch.equal(before[name], value) for name, value in bert.state_dict().items())
    assert all(torch.equal(value, fit().state[name]) for name, value in fitted.state.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "pairs"), KINDS)
def test_a_gpu_gives_the_scores_of_the_cpu(kind, pairs, sequences):
    model = stock(kind).requires_grad_(False)
    loss, scores = scored(model, batches(sequences, pairs), "per_token")
    there = importance.zeros(SHAPE, "cuda")
    model.cuda()
    loss_there = 0.0
    for batch in batches(sequences, pairs):
        loss_there += scoring.accumulate(
            there, model.bert, heads_of(model), batch.to("cuda"), nsp_weight=NSP_WEIGHT, reduction="per_token"
        )
    assert loss_there == pytest.approx(loss, rel=1e-9)
    for field, value in scores.as_dict().items():
        torch.testing.assert_close(getattr(there, field).cpu(), value)
