"""The lean forward pass gives what stock `BertModel` gives, and computes no more than it is asked for."""

import functools

import pytest
import torch
import torch._dynamo.testing
from transformers import BertConfig, BertModel

from etd_ds.bert import encoder
from etd_ds.losses import Segments, Wanted

LENGTHS = (7, 7, 3, 12, 7, 1)
WIDTH = 12
ALL = Wanted(scores=frozenset({1, 2, 3}), values=frozenset({1, 3}), hidden=frozenset({0, 1, 2, 3}))


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_act="gelu_new",
        attn_implementation="sdpa",
    )
    return BertModel(config, add_pooling_layer=False).double().eval()


@pytest.fixture(scope="module")
def padded():
    ids_BS = torch.randint(1, 50, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(1))
    types_BS = torch.arange(WIDTH).ge(4).long().expand_as(ids_BS)
    mask_BS = (torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None]).long()
    return ids_BS, types_BS, mask_BS


def _stock(bert, padded):
    """Queries, keys, values and hidden states of every layer by hooks on the stock forward pass."""
    ids_BS, types_BS, mask_BS = padded
    found, handles = {}, []
    for number, layer in enumerate(bert.encoder.layer, 1):
        for name in ("query", "key", "value"):
            linear = getattr(layer.attention.self, name)

            def keep(_module, _inputs, output, key=(name, number)):
                found[key] = output.unflatten(-1, (4, 6))

            handles.append(linear.register_forward_hook(keep))
    output = bert(ids_BS, token_type_ids=types_BS, attention_mask=mask_BS, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return found | {("hidden", i): h for i, h in enumerate(output.hidden_states)}


def _packed(padded, *, carry_padding):
    ids_BS, types_BS, mask_BS = padded
    positions_BS = torch.arange(WIDTH).expand_as(ids_BS)
    if carry_padding:
        segments = Segments((WIDTH,) * len(LENGTHS), LENGTHS)
        return encoder.Packed(ids_BS.flatten(), positions_BS.flatten(), types_BS.flatten(), segments)
    real = mask_BS.bool()
    return encoder.Packed(ids_BS[real], positions_BS[real], types_BS[real], Segments.packed(LENGTHS))


@pytest.mark.parametrize("carry_padding", [False, True])
def test_every_activation_and_every_gradient_is_the_stock_models(bert, padded, carry_padding):
    stock = _stock(bert, padded)
    taps = encoder.encode(bert, _packed(padded, carry_padding=carry_padding), ALL)
    keep = slice(None) if carry_padding else padded[2].bool().flatten()

    def flat(x):
        return x.flatten(0, 1)[keep]

    wanted, got = [], []
    for kind, layers in (("query", (1, 2, 3)), ("key", (1, 2, 3)), ("value", (1, 3)), ("hidden", (0, 1, 2, 3))):
        assert set(getattr(taps, kind)) == set(layers)
        wanted += [flat(stock[kind, layer]) for layer in layers]
        got += [getattr(taps, kind)[layer] for layer in layers]
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)

    parameters = list(bert.parameters())
    grads = [torch.autograd.grad(sum(x.square().sum() for x in xs), parameters) for xs in (got, wanted)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("wanted", "called"),
    [
        (Wanted(scores=frozenset({2})), {"embeddings": 1, "query": 2, "value": 1, "output": 1}),
        (Wanted(values=frozenset({3})), {"embeddings": 1, "query": 2, "value": 3, "output": 2}),
        (Wanted(scores=frozenset({3}), hidden=frozenset({3})), {"embeddings": 1, "query": 3, "value": 3, "output": 3}),
        (Wanted(hidden=frozenset({0})), {"embeddings": 1, "query": 0, "value": 0, "output": 0}),
    ],
)
def test_nothing_deeper_than_needed_runs(bert, padded, wanted, called):
    counts = dict.fromkeys(called, 0)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    handles = [bert.embeddings.LayerNorm.register_forward_hook(count("embeddings"))]
    for layer in bert.encoder.layer:
        handles.append(layer.attention.self.query.register_forward_hook(count("query")))
        handles.append(layer.attention.self.value.register_forward_hook(count("value")))
        handles.append(layer.output.dense.register_forward_hook(count("output")))
    encoder.encode(bert, _packed(padded, carry_padding=False), wanted)
    for handle in handles:
        handle.remove()
    assert counts == called


def test_dropout_is_drawn_from_the_global_generator(bert, padded):
    packed, wanted = _packed(padded, carry_padding=False), Wanted(hidden=frozenset({3}))

    def run(seed):
        torch.manual_seed(seed)
        return encoder.encode(bert, packed, wanted, dropout=0.3).hidden[3]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_compiled_it_gives_the_same_and_is_not_compiled_anew_for_each_layer_and_length(bert, monkeypatch):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(encoder._mix, dynamic=True, backend=counter)
    monkeypatch.setattr(encoder, "_compiled_mix", lambda: compiled)
    wanted, learning = Wanted(hidden=frozenset({3})), list(bert.parameters())
    for lengths in ((7, 9), (5, 16, 10), (12,), (3, 3, 3)):
        T = sum(lengths)
        ids_T = torch.randint(1, 50, (T,), generator=torch.Generator().manual_seed(T))
        positions_T = torch.cat([torch.arange(length) for length in lengths])
        packed = encoder.Packed(ids_T, positions_T, torch.zeros_like(ids_T), Segments.packed(lengths))
        found = []
        for compile_it in (False, True):
            hidden = encoder.encode(bert, packed, wanted, compiled=compile_it).hidden[3]
            found.append((hidden, *torch.autograd.grad(hidden.square().sum(), learning)))
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert 0 < counter.frame_count < 6  # of 12 layers that were computed


def test_students_of_many_shapes_are_all_compiled(monkeypatch):
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # to be set back
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    compiled = encoder._compiled_mix.__wrapped__()
    monkeypatch.setattr(encoder, "_compiled_mix", lambda: compiled)
    two = torch.zeros(2, dtype=torch.long)
    packed = encoder.Packed(two, two, two, Segments.packed([2]))
    for hidden in range(8, 48, 8):
        sizes = {"hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": hidden}
        bert = BertModel(BertConfig(vocab_size=9, **sizes), add_pooling_layer=False)
        for learning in (True, False):
            before = counter.frame_count
            with torch.set_grad_enabled(learning):
                encoder.encode(bert, packed, Wanted(hidden=frozenset({1})), compiled=True)
            assert counter.frame_count > before
