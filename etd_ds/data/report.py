"""What a prepared corpus looks like: figures, the lengths of its segments, and a plot of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from etd_ds.data import corpus, shards, tokenize

_CHUNK = 1 << 20  # segments read at once
_BARS = 32


@dataclass(frozen=True)
class Report:
    """Figures of one split."""

    rows: int
    segments: int
    tokens: int
    """With [CLS] and [SEP]."""
    fill: float
    """Share of the rows' capacity that holds tokens; the rest is not stored and not computed."""
    padding_saved: float
    """Share of padding that a loader of one segment a row, padded to the sequence length, would have had."""
    lengths: np.ndarray
    """(seq_length + 1,) number of segments of each length, [CLS] and [SEP] included."""

    def histogram(self) -> list[tuple[int, int, int]]:
        """(shortest, longest, segments) of at most `_BARS` bars of equal width."""
        width = -(-(len(self.lengths) - 1) // _BARS)
        return [
            (low, min(low + width, len(self.lengths)) - 1, int(self.lengths[low : low + width].sum()))
            for low in range(1, len(self.lengths), width)
        ]


def of(folder: Path, split: str = "train") -> Report:
    """Figures of a split, from its index alone. Raises `CorpusError` if the folder holds no prepared corpus."""
    manifest = corpus.read_manifest(folder)
    counts: corpus.Split = getattr(manifest, split)
    seq_length = manifest.options.seq_length
    lengths = np.zeros(seq_length + 1, np.int64)
    segments = shards.mapped(folder / f"{split}.segments", corpus.SEGMENT)
    for start in range(0, len(segments), _CHUNK):
        lengths += np.bincount(corpus.segment_lengths(segments[start : start + _CHUNK]), minlength=seq_length + 1)
    return Report(
        rows=counts.rows,
        segments=counts.segments,
        tokens=counts.tokens,
        fill=_share(counts.tokens, counts.rows * seq_length),
        padding_saved=1 - _share(counts.tokens, counts.segments * seq_length) if counts.segments else 0.0,
        lengths=lengths,
    )


def samples(opened: corpus.Corpus, count: int) -> list[str]:
    """The first training rows as text, special tokens included, one line a segment."""
    tokenizer = tokenize.open_file(opened.folder / corpus.TOKENIZER)
    texts = []
    for index in range(min(count, len(opened.train))):
        row = opened.train[index]
        parts = np.split(row.ids_T, np.cumsum(row.lengths)[:-1])
        texts.append("\n".join(tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts))
    return texts


def text_plot(report: Report, width: int = 50) -> str:
    """The histogram as lines of text."""
    bars = report.histogram()
    most = max((count for *_, count in bars), default=0) or 1
    lines = [f"{low:>6}-{high:<6}{count:>10,}  {'█' * round(width * count / most)}" for low, high, count in bars]
    return "\n".join(lines)


def svg_plot(report: Report, title: str) -> str:
    """The histogram as an SVG document."""
    bars = report.histogram()
    most = max((count for *_, count in bars), default=0) or 1
    width, height, left, base = 800, 360, 60, 310
    step = (width - left - 20) / max(len(bars), 1)
    shapes = []
    for index, (low, high, count) in enumerate(bars):
        size = 250 * count / most
        x = left + index * step
        shapes.append(
            f'<rect x="{x:.1f}" y="{base - size:.1f}" width="{step * 0.9:.1f}" height="{size:.1f}" fill="#4472a8">'
            f"<title>{low}-{high} tokens: {count:,} segments</title></rect>"
        )
        if index % 4 == 0:
            shapes.append(f'<text x="{x:.1f}" y="{base + 16}">{low}</text>')
    shapes += [
        f'<text x="{left}" y="24" font-size="15">{escape(title)}</text>',
        f'<text x="{left - 6}" y="{base - 246}" text-anchor="end">{most:,}</text>',
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>',
        f'<text x="{width / 2}" y="{base + 40}" text-anchor="middle">tokens in a segment</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    white = f'<rect width="{width}" height="{height}" fill="white"/>'
    return f'{head} font-size="12">{white}{"".join(shapes)}</svg>\n'


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
