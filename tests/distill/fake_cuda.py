"""Distillation steps on CUDA tensors that have no memory, without a GPU: prints what each launched, as JSON.

    fake_cuda.py [LIBRARY]    a torch without CUDA needs the library made of fake_cuda.cpp

Fake tensors refuse what a GPU would: two devices in one operation, two dtypes in one product. And they have no values,
so a step that waited for a number of theirs would fail.
"""

import ctypes
import itertools
import json
import os
import sys

if sys.argv[1:]:
    ctypes.CDLL(sys.argv[1])  # before torch looks for devices

import torch
import torch.nn.attention.varlen as varlen
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel
from triton.runtime import JITFunction

from etd_ds.data.batch import Batch
from etd_ds.distill import inputs
from etd_ds.distill.module import Distiller, Guide
from etd_ds.losses import OBJECTIVES

CUDA = torch.device("cuda", 0)
# compute capability -> precisions
GPUS = {(9, 0): (torch.float32, torch.bfloat16), (7, 0): (torch.float16,)}
# lengths, and what they are padded to
BATCHES = {
    "many": ([40, 128, 7, 200, 64, 64, 33, 90, 150, 12], None),
    "few": ([64, 64, 30], None),
    "compat": ([40, 128, 7, 200], 256),
}
launched = {"flash": 0, "kernel": 0}
flash = varlen.varlen_attn


def counted_flash(*args, **options):
    launched["flash"] += 1
    return flash(*args, **options)


def launch(kernel, *args, grid, warmup, **options):
    launched["kernel"] += 1
    assert {x.device for x in args if isinstance(x, torch.Tensor)} == {CUDA}


def bert(layers, hidden):
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 2 * hidden}
    config = BertConfig(vocab_size=500, num_attention_heads=4, max_position_embeddings=256, **sizes)
    return BertModel(config, add_pooling_layer=False)


def step(objective, dtype, lengths, pad_to):
    """One step as the loop takes it, from a batch on the CPU to the gradients."""
    compared = OBJECTIVES[objective](1, 2)
    torch.set_default_dtype(dtype)
    with CUDA:
        distiller = Distiller(bert(1, 64), compared, teacher_hidden=128, dropout=0.1, seed=0)
        guide = Guide(bert(2, 128), compared)
    torch.set_default_dtype(torch.float32)
    ids_T = torch.ones(sum(lengths), dtype=torch.long)
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    packed = inputs.pack(Batch(ids_T, positions_T, torch.zeros_like(ids_T), lengths, len(lengths)), pad_to=pad_to)
    launched.update(flash=0, kernel=0)
    on_gpu = packed.to(CUDA)
    loss, terms = distiller(on_gpu, guide(on_gpu), inputs.totals([packed]))
    loss.backward()
    assert (loss.device, loss.dtype, terms.device) == (CUDA, torch.float32, CUDA)
    for parameter in distiller.parameters():
        if parameter.requires_grad:
            assert (parameter.grad.device, parameter.grad.dtype) == (CUDA, dtype)


if __name__ == "__main__":
    varlen.varlen_attn, JITFunction.run = counted_flash, launch
    found = {}
    for capability, dtypes in GPUS.items():
        torch.cuda.get_device_capability = lambda device, of=capability: of
        for objective, dtype, name in itertools.product(OBJECTIVES, dtypes, BATCHES):
            with FakeTensorMode():
                step(objective, dtype, *BATCHES[name])
            found[f"{capability[0]} {objective} {str(dtype).removeprefix('torch.')} {name}"] = dict(launched)
    print(json.dumps(found), flush=True)
    os._exit(0)  # autograd's thread for the device would not end
