"""Whether a run still makes sense after a step, and what to change when it does not."""

from __future__ import annotations

import math

from etd_ds.contract import errors
from etd_ds.engine.runtime import Update

# A loss so many times the first one does not come back.
DIVERGED = 100.0
# A first loss below this is as good as none: a student that is its teacher begins at 0.
SMALL = 0.01


def check(loss: float, update: Update, *, step: int, batch_size: int, first_loss: float) -> None:
    """Raise `TrainingError` for a loss that is not finite or diverged, or a gradient that is not finite."""
    first = (step - 1) * batch_size
    where = f"step {step} (sequences {first} to {first + batch_size - 1} in data order)"
    if not math.isfinite(loss):
        cure = "lower learning_rate" + ("" if update.loss_scale is None else ", or choose precision bf16 or fp32")
        raise errors.TrainingError(f"the loss became {loss} at {where}; {cure}", got=str(loss))
    overflow = update.grad_norm is not None and not math.isfinite(update.grad_norm)
    if overflow and update.loss_scale is None:
        raise errors.TrainingError(f"the gradient became {update.grad_norm} at {where}; lower learning_rate")
    if update.exhausted:
        raise errors.TrainingError(
            f"fp16 gradients overflow at {where} even at the smallest loss scale, {update.loss_scale:g}; choose "
            "precision bf16 or fp32"
        )
    if loss > DIVERGED * max(first_loss, SMALL):
        raise errors.TrainingError(
            f"the loss grew from {first_loss:.4g} to {loss:.4g} at {where}: the run diverged; lower learning_rate or "
            "raise warmup_ratio",
            wanted=first_loss,
            got=loss,
        )


def check_held_out(loss: float, *, step: int) -> None:
    """Raise `TrainingError` for a held-out loss that is not finite: a checkpoint could not say it."""
    if not math.isfinite(loss):
        cure = "lower learning_rate, or" if step else "look at the weights of teacher and student, or"
        raise errors.TrainingError(
            f"the held-out loss became {loss} after step {step}; {cure} choose precision bf16 or fp32 if it is fp16",
            got=str(loss),
        )
