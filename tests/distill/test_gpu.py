"""What only a GPU can show: varlen attention, padded losses and half precision agree with the plain fp32 step, and
whole runs come to their end there. To be run by `pytest -m gpu`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import CONFIGS
from transformers import AutoModel, BertConfig, BertModel

from etd_ds.bert.encoder import Packed
from etd_ds.contract import events
from etd_ds.distill.module import Distiller, Guide
from etd_ds.losses import OBJECTIVES, Segments, Totals

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = (40, 128, 7, 200, 64, 64, 33, 90, 150, 12)


def _bert(layers, hidden, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 2 * hidden}
    config = BertConfig(vocab_size=500, num_attention_heads=4, max_position_embeddings=256, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_step_on_a_gpu_is_the_step_on_a_cpu(objective, dtype, tolerance, compiled):
    compared = OBJECTIVES[objective](2, 4)
    distiller = Distiller(_bert(2, 64, 1), compared, teacher_hidden=128, dropout=0.0, seed=0)
    guide = Guide(_bert(4, 128, 2), compared)
    T = sum(LENGTHS)
    ids_T = torch.randint(1, 500, (T,), generator=torch.Generator().manual_seed(3))
    positions_T = torch.cat([torch.arange(length) for length in LENGTHS])
    packed = Packed(ids_T, positions_T, torch.zeros_like(ids_T), Segments.packed(LENGTHS))
    totals = Totals(T, sum(length * length for length in LENGTHS))

    def loss_and_gradient():
        distiller.zero_grad()
        device = next(distiller.parameters()).device
        batch = packed.to(device)
        loss, _ = distiller(batch, guide(batch), totals)
        loss.backward()
        gradients = [p.grad.float().cpu().flatten() for p in distiller.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients)

    wanted, wanted_gradient = loss_and_gradient()
    distiller.to("cuda", dtype)
    guide.to("cuda", dtype)
    distiller.compiled = guide.compiled = compiled
    got, gradient = loss_and_gradient()
    assert got == pytest.approx(wanted, rel=tolerance)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 5 * tolerance


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("zero2", {}),
        ("zero2", {"objective": "minilm", "torch_compile": True}),
        ("zero2_offload", {"refit": "all"}),
        ("zero3", {"shard_teacher": True}),
        ("fp16", {"objective": "tinybert"}),
    ],
)
def test_a_run_on_a_gpu_learns_and_ends_in_a_stock_student(make_run, small_world, config, changes):
    run = make_run(steps=20, hidden=32, ffn=64, **changes)  # heads of 8: what flash attention takes
    argv = [sys.executable, str(Path(__file__).parents[2] / "etd_ds" / "train.py"), "--run", str(run.root)]
    argv += ["--deepspeed", str(CONFIGS / f"{config}.json"), "--cache", str(small_world[2])]
    for _ in range(2):  # the second finds all done
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    said = list(events.read(run.events))
    (attempt,) = (event for event in said if isinstance(event, events.Attempt))
    assert attempt.device == torch.cuda.get_device_name()
    assert attempt.precision != "fp32"
    losses = [event.loss for event in said if isinstance(event, events.Validation)]
    assert losses[-1] < 1.1 * losses[0]  # one that was refitted begins where so few steps do not lead
    AutoModel.from_pretrained(run.student, add_pooling_layer=False)
