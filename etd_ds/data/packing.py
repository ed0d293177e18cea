"""Documents into rows: which stretch of which document stands where. Pure: lengths in, places out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

OPEN_ROWS = 256
"""Rows that wait for something that fits; more fill better and mix documents from further apart."""


def spans(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the stretches of at most `limit` tokens that a document of `length` is cut into."""
    for start in range(0, length, limit):
        yield start, min(limit, length - start)


def pack(items: Iterable[tuple[T, int]], capacity: int) -> Iterator[list[T]]:
    """Rows of items whose lengths add up to `capacity` at most, every item once, best fit first.

    Each item goes into the fullest open row that still takes it; when `OPEN_ROWS` are open the fullest is closed.
    Memory does not grow with the number of items, and the result depends on their order and lengths alone.
    """
    packer: _Packer[T] = _Packer(capacity)
    for item, length in items:
        if not 0 < length <= capacity:
            raise ValueError(f"an item of {length} tokens in rows of {capacity}")
        yield from packer.put(item, length)
    yield from packer.rest()


@dataclass
class _Packer(Generic[T]):
    capacity: int
    rows: dict[int, deque[list[T]]] = field(default_factory=dict)
    """Open rows by the room left in them, oldest first."""
    rooms: int = 0
    """Bit r is set where rows with room r are open, so that the best fit is one shift and one bit trick."""
    count: int = 0

    def put(self, item: T, length: int) -> Iterator[list[T]]:
        fitting = self.rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = self._take(room)
        else:
            room, row = self.capacity, []
            if self.count == OPEN_ROWS:
                yield self._take((self.rooms & -self.rooms).bit_length() - 1)
        row.append(item)
        if room == length:
            yield row
        else:
            self.rows.setdefault(room - length, deque()).append(row)
            self.rooms |= 1 << (room - length)
            self.count += 1

    def rest(self) -> Iterator[list[T]]:
        while self.rooms:
            yield self._take((self.rooms & -self.rooms).bit_length() - 1)

    def _take(self, room: int) -> list[T]:
        waiting = self.rows[room]
        row = waiting.popleft()
        if not waiting:
            del self.rows[room]
            self.rooms &= ~(1 << room)
        self.count -= 1
        return row
