"""What a person sees of a run: a progress bar on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from etd_ds.contract import events

# Seconds between progress lines where there is no terminal.
LINE_EVERY = 10.0


class Display:
    """Shows events of the training loop on stderr. `steps` is the length of the run, `done` where it starts."""

    def __init__(self, steps: int, done: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, desc="distill", unit="step", dynamic_ncols=True)
        self._last_line = -LINE_EVERY

    def show(self, event: events.Event) -> None:
        """One event, if it is of interest to a person."""
        match event:
            case events.Step():
                self._step(event)
            case events.Validation():
                parts = ", ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
                self._line(f"step {event.step}: held-out loss {event.loss:.4f} ({parts})")
            case events.Warn():
                self._line(f"warning: {event.message}")
            case _:
                pass

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()

    def _step(self, event: events.Step) -> None:
        numbers = f"loss {event.loss:.4f}, {event.tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(event.step - self._bar.n)
        elif event.step == event.steps or time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self._line(f"step {event.step}/{event.steps}: {numbers}, {_clock(event.eta_seconds)} left")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
