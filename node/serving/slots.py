"""The slot table: the places for clients, and which are free. Taking and giving back are O(1)."""

from __future__ import annotations


class SlotTable:
    """`limit` places, numbered from 0; without a limit there is always one more."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._free: list[int] = []  # given back, the last one on top
        self._fresh = 0  # from here on no slot was ever taken
        self._taken: set[int] = set()

    def __repr__(self) -> str:
        return f"<SlotTable {len(self._taken)} of {self.limit} taken>"

    def take(self) -> int | None:
        """A free slot, or None when there is none."""
        if self.limit is not None and len(self._taken) >= self.limit:
            return None
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._fresh
            self._fresh += 1
        self._taken.add(slot)
        return slot

    def resize(self, limit: int | None) -> None:
        """From now on so many; who has a place keeps it."""
        self.limit = limit

    def give_back(self, slot: int) -> None:
        """Raises KeyError for a slot that is not taken."""
        self._taken.remove(slot)
        self._free.append(slot)
