"""The numbers of a run for TensorBoard, beside `events.jsonl`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from etd_ds.contract import errors, events

# Fields of a `Step` that are drawn under their own names, where they are there.
DRAWN = (
    *("loss", "learning_rate", "grad_norm", "loss_scale", "epoch", "tokens"),
    *("tokens_per_second", "padding_avoided", "memory_bytes"),
)


def check() -> None:
    """Raise `EtdError` if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise errors.EtdError(
            "tensorboard: wanted the package tensorboard, it is not installed here; pip install 'etd-ds[tensorboard]', "
            "or leave the field out",
            field="tensorboard",
        )


class Board:
    """Writes scalars into `folder`. What an earlier attempt wrote of steps after `done` is no longer shown."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def show(self, event: events.Event) -> None:
        """One event, if it has numbers to draw."""
        match event:
            case events.Step():
                drawn = {name: getattr(event, name) for name in DRAWN}
                drawn |= {f"terms/{name}": value for name, value in event.terms.items()}
            case events.Validation():
                drawn = {"held_out/loss": event.loss}
                drawn |= {f"held_out/{name}": value for name, value in event.terms.items()}
            case _:
                return
        for name, value in drawn.items():
            if value is not None:
                self._writer.add_scalar(name, value, event.step, walltime=event.time)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
