"""Importance scores against the plain way, and cutting a BERT-Base-size student from cached scores.

    python -m benchmarks.importance [--repetitions 3] [--threads 2]

The plain way is what one writes first: stock `BertForMaskedLM`, every parameter with its gradient, activations kept
by hooks, sentences padded in file order, logits for all positions. Both run in this process, in turn, on the same
sentences and masks. Before any ratio is printed, both must give the same scores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

import etd_ds.data
from benchmarks import measure
from etd_ds.bert import scoring
from etd_ds.contract import shape, spec, teachers
from etd_ds.data import tokenize
from etd_ds.extract import importance
from etd_ds.stages import extract, sentences

MINILM = shape.EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)
FIELDS = ("ffn_LF", "head_LC", "hidden_LH", "middle_LH")


def model_of(wanted: shape.EncoderShape) -> BertForMaskedLM:
    """A random BERT with an MLM head; the arithmetic does not care about the weights."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=wanted.layers,
        hidden_size=wanted.hidden,
        num_attention_heads=wanted.heads,
        intermediate_size=wanted.ffn,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(config).eval()


def ours(model: BertForMaskedLM, batches: Sequence[scoring.Batch], wanted: shape.EncoderShape) -> importance.Scores:
    """One backward, no parameter gradients, no padding."""
    model.requires_grad_(False)
    heads = {name: p for name, p in model.named_parameters() if name.startswith("cls.")}
    scores = importance.zeros(wanted)
    for batch in batches:
        scoring.accumulate(scores, model.bert, heads, batch, nsp_weight=0.0, reduction="per_token")
    return scores


def plain(model: BertForMaskedLM, batches: Sequence[scoring.Batch], wanted: shape.EncoderShape) -> importance.Scores:
    """Autograd through everything, padded batches of 32 sequences."""
    model.requires_grad_(True)
    scores = importance.zeros(wanted)
    for ids_BS, types_BS, labels_BS, mask_BS in padded(batches):
        kept: dict[str, list[torch.Tensor]] = {field: [] for field in FIELDS}
        handles = [hook for layer in model.bert.encoder.layer for hook in tap(layer, kept)]
        logits_BSV = model(ids_BS, token_type_ids=types_BS, attention_mask=mask_BS).logits
        F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="sum").backward()
        for handle in handles:
            handle.remove()
        for field, activations in kept.items():
            for i, h_BSX in enumerate(activations):
                assert h_BSX.grad is not None
                getattr(scores, field)[i] += (h_BSX.detach() * h_BSX.grad).abs().sum((0, 1)).double()
        model.zero_grad(set_to_none=False)
    return scores


def tap(layer: torch.nn.Module, kept: dict[str, list[torch.Tensor]]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Keep what enters the four modules at which activations are read."""
    modules = (layer.output.dense, layer.attention.output.dense, layer, layer.intermediate)
    for field, module in zip(FIELDS, modules, strict=True):

        def keep(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], field: str = field) -> None:
            if not args[0].requires_grad:
                args[0].requires_grad_(True)
            args[0].retain_grad()
            kept[field].append(args[0])

        yield module.register_forward_pre_hook(keep)


def padded(batches: Sequence[scoring.Batch], rows: int = 32) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same sequences in a mixed order, as a loader that knows nothing of lengths would give them."""
    single = [
        (batch.ids_BS[i], batch.types_BS[i], batch.labels_BS[i]) for batch in batches for i in range(len(batch.ids_BS))
    ]
    order = torch.randperm(len(single), generator=torch.Generator().manual_seed(0)).tolist()
    for first in range(0, len(order), rows):
        chosen = [single[i] for i in order[first : first + rows]]
        width = max(len(one[0]) for one in chosen)
        ids_BS, types_BS, labels_BS = (
            torch.stack([F.pad(one[k], (0, width - len(one[k])), value=value) for one in chosen])
            for k, value in enumerate((0, 0, scoring.IGNORED))
        )
        mask_BS = torch.stack([torch.arange(width) < len(one[0]) for one in chosen]).long()
        yield ids_BS, types_BS, labels_BS, mask_BS


def compare(name: str, wanted: shape.EncoderShape, batches: Sequence[scoring.Batch], repetitions: int) -> None:
    """Gate, then one row of ratios."""
    model = model_of(wanted)
    one, other = ours(model, batches, wanted), plain(model, batches, wanted)
    for field in FIELDS:
        a_LX, b_LX = getattr(one, field), getattr(other, field)
        worst = ((a_LX - b_LX).abs() / b_LX.mean()).max().item()
        if worst > 1e-3:
            raise SystemExit(f"{name}: {field} differs by {worst:.1e} of its mean; no ratio is printed")
    model.zero_grad(set_to_none=True)
    works = {"ours": lambda: ours(model, batches, wanted), "plain": lambda: plain(model, batches, wanted)}
    samples = measure.interleaved(works, repetitions)
    mine, theirs = samples["ours"], samples["plain"]
    ratios = [b / a for a, b in zip(mine.cpu, theirs.cpu, strict=True)]
    print(
        f"{name:<34} {mine.median:8.2f} {theirs.median:8.2f}   {theirs.median / mine.median:5.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f})   {mine.peak_bytes / 1e6:7.0f} {theirs.peak_bytes / 1e6:7.0f}   "
        f"{theirs.peak_bytes / max(1, mine.peak_bytes):5.2f}",
        flush=True,
    )


def cut_from_cache(repetitions: int) -> None:
    """Seconds to cut students of several shapes from a BERT-Base-size teacher whose scores are cached."""
    with tempfile.TemporaryDirectory() as root:
        teacher, cache = Path(root) / "teacher", Path(root) / "cache"
        model_of(shape.BERT_BASE).save_pretrained(teacher)
        for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
            shutil.copyfile(teachers.embedded_folder() / file, teacher / file)
        job = spec.JobSpec(layers=6, hidden=384, teacher=str(teacher), importance_sentences=8)
        extract.cut(job, Path(root) / "first", cache=cache)
        for layers, hidden in ((6, 384), (4, 384), (3, 192), (12, 768)):
            taken = []
            for i in range(repetitions):
                asked = job.model_copy(update={"layers": layers, "hidden": hidden})
                started = time.perf_counter()
                extract.cut(asked, Path(root) / f"{layers}-{hidden}-{i}", cache=cache)
                taken.append(time.perf_counter() - started)
            print(f"{layers:>2}L-{hidden}: {min(taken):.2f}-{max(taken):.2f} s")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = tokenize.open_tokenizer(teachers.embedded_folder())
    text = sentences.read(etd_ds.data.sentences("embedded", 1000), tokenizer, shape.BERT_BASE.vocab)
    real = sentences.batches(text, positions=512, seed=0, pairs=False)
    some = real[len(real) // 4 :: 6]  # every sixth length from the short quarter on
    full = next(sentences.fit_batches(text, seed=0, positions=512))
    print(f"{'':<34} CPU seconds (median)   ratio              peak MB added      ratio")
    print(f"{'':<34} {'ours':>8} {'plain':>8}   {'':5} {'(min-max)':>11}   {'ours':>7} {'plain':>7}")
    count = sum(len(batch.ids_BS) for batch in some)
    compare("6L-384, 16 × 128 tokens", MINILM, [full], args.repetitions)
    compare(f"6L-384, {count} real sentences", MINILM, some, args.repetitions)
    compare("BERT-Base, 16 × 128 tokens", shape.BERT_BASE, [full], args.repetitions)
    print("\ncutting a student from cached scores of a BERT-Base-size teacher, all files written")
    cut_from_cache(args.repetitions)


if __name__ == "__main__":
    main()
