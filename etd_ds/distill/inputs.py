"""From data batches to what the encoder takes: packed as they come, or with their padding (`tinybert_compat`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etd_ds.bert.encoder import Packed
from etd_ds.data.batch import Batch
from etd_ds.losses import Segments, Totals


def pack(batch: Batch, *, pad_to: int | None) -> Packed:
    """The batch without padding, or with every segment padded to `pad_to` tokens that only keys are masked in."""
    if pad_to is None:
        return Packed(batch.ids_T, batch.positions_T, batch.types_T, Segments.packed(batch.lengths))
    real_BS = torch.arange(pad_to) < torch.tensor(batch.lengths)[:, None]

    def spread(x_T: Tensor, fill: int) -> Tensor:
        x_BS = x_T.new_full(real_BS.shape, fill)
        x_BS[real_BS] = x_T
        return x_BS.flatten()

    B = len(batch.lengths)
    positions_T = torch.arange(pad_to).repeat(B)
    segments = Segments((pad_to,) * B, tuple(batch.lengths))
    return Packed(spread(batch.ids_T, batch.pad_id), positions_T, spread(batch.types_T, 0), segments)


def totals(packed: Sequence[Packed]) -> Totals:
    """What these batches add to the global totals."""
    lengths = [length for batch in packed for length in batch.segments.lengths]
    return Totals(sum(lengths), sum(length * length for length in lengths))
