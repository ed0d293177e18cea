"""A tiny BERT with a real word-piece tokenizer, as a stock folder, and text for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

TEXT = "the a river town king of in was is large small old new and ruled lies near sea it he she who built"
WORDS = TEXT.split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
CLASSES = {"BertModel": BertModel, "BertForMaskedLM": BertForMaskedLM, "BertForPreTraining": BertForPreTraining}
SENTENCES = 60


def write(folder: Path, kind: str = "BertModel") -> Path:
    """A teacher of that stock class: 3 layers, hidden 12, 3 heads, FFN 24."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = CLASSES[kind](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


def write_corpus(path: Path, sentences: int = SENTENCES) -> Path:
    """A document a line, four sentences each."""
    generator = torch.Generator().manual_seed(1)
    lines = []
    for _ in range(sentences // 4):
        document = []
        for _ in range(4):
            length = int(torch.randint(3, 12, (), generator=generator))
            words = torch.randint(len(WORDS), (length,), generator=generator).tolist()
            document.append(" ".join(WORDS[i] for i in words).capitalize() + ".")
        lines.append(" ".join(document))
    path.write_text("\n\n".join(lines) + "\n")
    return path
