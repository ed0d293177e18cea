"""Packed batches of rows: no padding, attention never crosses a segment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from etd_ds.data.corpus import Row


class Padded(NamedTuple):
    """A batch as plain definitions take it: one segment a row, padded to the longest; `mask_BS` is 1 on tokens."""

    ids_BS: Tensor
    mask_BS: Tensor
    types_BS: Tensor


@dataclass(frozen=True)
class Batch:
    """Segments one after another: T = sum(lengths) tokens, of which `rows` rows were made. Tensors are int64."""

    ids_T: Tensor
    positions_T: Tensor
    """Restarts at 0 with each segment."""
    types_T: Tensor
    lengths: list[int]
    rows: int
    pad_id: int = 0

    def padded(self) -> Padded:
        """The same segments, B of them, each padded to the longest S."""
        B, S = len(self.lengths), max(self.lengths)
        lengths_B = torch.tensor(self.lengths, device=self.ids_T.device)
        mask_BS = torch.arange(S, device=self.ids_T.device) < lengths_B[:, None]
        ids_BS = self.ids_T.new_full((B, S), self.pad_id)
        types_BS = self.types_T.new_zeros(B, S)
        ids_BS[mask_BS] = self.ids_T
        types_BS[mask_BS] = self.types_T
        return Padded(ids_BS, mask_BS.long(), types_BS)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on a device; does not wait where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a GPU reads while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self, ids_T=change(self.ids_T), positions_T=change(self.positions_T), types_T=change(self.types_T)
        )


def collate(rows: Sequence[Row], pad_id: int = 0) -> Batch:
    """Rows one after another as one packed batch."""
    lengths = [length for row in rows for length in row.lengths]
    lengths_B = np.asarray(lengths)
    ends_B = np.cumsum(lengths_B)
    positions_T = np.arange(ends_B[-1]) - np.repeat(ends_B - lengths_B, lengths_B)
    return Batch(
        ids_T=torch.from_numpy(np.concatenate([row.ids_T for row in rows])),
        positions_T=torch.from_numpy(positions_T),
        types_T=torch.from_numpy(np.concatenate([row.types_T for row in rows])),
        lengths=lengths,
        rows=len(rows),
        pad_id=pad_id,
    )
