"""The order of the merged log: a cause stands before its effects. Pure; it knows neither files nor sockets.

A server appends a record when a request is done, so its log is in the order of ends. The merged log is in the order of
starts, for a request starts before its pieces do. Three steps lead there:

1. `survey` and `in_order` sort one server's log by start, a block at a time.
2. `Merger` merges the servers' sorted logs by start. It does not trust their clocks: where a piece comes up before its
   request, its server waits until the request has been given. A server's identifiers grow with time, so one number a
   server tells which of its requests have been given or will never be.
3. `Live` does the same for what happens now (`logs -f`), when a request is logged after its pieces: a record waits for
   a short window, and a piece for its request.

Each holds what it must and no more: what was in flight where a block ended, a batch of each server, a window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import Any, NamedTuple

from node.record import KEY, RECORD_SIZE, SERVER_SHIFT, Kind

REQUEST = int(Kind.REQUEST)
PIECE = int(Kind.PIECE)

Entry = tuple[int, int, int, int, bytes]
"""A record in the merge: start, kind, identifier, the server that wrote it, and its slot. Entries compare in the order
of the log. (A plain tuple: sorts and heaps compare millions.)"""


def entries(server: int, data: bytes) -> list[Entry]:
    """The records in `data`, a whole number of slots; slots that were never written (kind 0) are passed over."""
    positions = range(0, len(data), RECORD_SIZE)
    return [
        (start, kind, identifier, server, data[position : position + RECORD_SIZE])
        for (start, identifier, kind), position in zip(KEY.iter_unpack(data), positions, strict=True)
        if kind
    ]


# -- one server --------------------------------------------------------------------------------------------------


Bound = tuple[Any, ...]
"""An entry, or () which is before all entries."""


class Stretch(NamedTuple):
    """What must be known of a block before the blocks are given in order of start.

    `bound` is the last entry, in the order of the log, of the blocks before it. Entries of the block before that were
    in flight when those blocks ended: they are `late`, and belong there. A bound of () begins a new order. `latest` is
    the bound of the block that follows.
    """

    bound: Bound
    latest: Bound
    late: list[Entry]


def survey(block: Sequence[Entry], bound: Bound) -> Stretch:
    """Where most of a block seems late, it was the clock that was set back: a new order begins."""
    late = [entry for entry in block if entry < bound]
    if len(late) * 2 > len(block):
        bound, late = (), []
    return Stretch(bound, max(bound, max(block, default=())), late)


def in_order(stretches: Sequence[Stretch], blocks: Iterable[Sequence[Entry]]) -> Iterator[list[Entry]]:
    """The blocks' entries, given in order of end, in order of start; `stretches` are the surveys of the same blocks.

    An empty block may stand for one whose entries are not wanted, but for the late ones.
    """
    late: list[Entry] = []
    taken = 0
    for index, (stretch, block) in enumerate(zip(stretches, blocks, strict=True)):
        if not stretch.bound:
            late, taken = _late_in_order(stretches, index), 0
        own = [entry for entry in block if entry >= stretch.bound]
        end = bisect_right(late, stretch.latest)
        own += late[taken:end]
        taken = end
        own.sort()
        yield own


def _late_in_order(stretches: Sequence[Stretch], index: int) -> list[Entry]:
    """The late entries of the order that begins at `index`."""
    late: list[Entry] = []
    for stretch in islice(stretches, index + 1, None):
        if not stretch.bound:
            break
        late += stretch.late
    late.sort()
    return late


# -- several servers ---------------------------------------------------------------------------------------------


class Merger:
    """Merges the logs of servers, each in order of start and given a batch at a time.

    `wanting` are the servers whose next batch must come, with `feed` or `end`, before `take` can give more. A piece
    waits for its request only while the log of the server that took it is not at its end. A server's own order is
    kept, but see `_break_circle`. With `one_clock` no piece starts before its request and none waits: that is so where
    requests are logged by whoever answers them.
    """

    def __init__(self, servers: Iterable[int], *, one_clock: bool = False) -> None:
        self.wanting = set(servers)
        self._open = set(self.wanting)
        self._batches: dict[int, Iterator[Entry]] = {}
        self._heads: list[Entry] = []  # a heap: the next entry of each server that need not wait
        self._waiting: dict[int, list[Entry]] = {server: [] for server in self.wanting}  # by the server waited for
        self._aside: set[int] = set()  # id() of entries whose server has gone on without them; entries may be equal
        # The greatest identifier of the requests a server has given; servers that nobody waits for are not in it.
        self._highest = {} if one_clock else dict.fromkeys(self.wanting, -1)

    def __repr__(self) -> str:
        return f"<Merger of {len(self._waiting)} servers, wants {sorted(self.wanting)}>"

    @property
    def finished(self) -> bool:
        """Everything has been given."""
        return not (self._open or self._heads or any(self._waiting.values()))

    def feed(self, server: int, batch: Sequence[Entry]) -> None:
        """The next entries of a server that is wanting."""
        if batch:
            following = iter(batch)
            heappush(self._heads, next(following))
            self._batches[server] = following
            self.wanting.discard(server)

    def end(self, server: int) -> None:
        """A server has no more than it was fed."""
        self._open.discard(server)
        if server in self.wanting:
            self.wanting.discard(server)
            self._leave(server)

    def take(self, limit: int) -> list[Entry]:
        """The next entries in the order of the log, at most `limit`; none if some server is wanting, or at the end."""
        taken: list[Entry] = []
        heads, batches, highest = self._heads, self._batches, self._highest
        while len(taken) < limit and not self.wanting:
            if not heads:
                if not any(self._waiting.values()):
                    break
                self._break_circle()
                continue
            entry = heads[0]
            _, kind, identifier, server, _ = entry
            if kind == PIECE:
                cause = identifier >> SERVER_SHIFT
                if cause != server and identifier > highest.get(cause, identifier):
                    self._waiting[cause].append(heappop(heads))
                    continue
            taken.append(entry)
            if self._aside and id(entry) in self._aside:
                self._aside.discard(id(entry))
                heappop(heads)
                continue
            following = next(batches[server], None)
            if following is not None:
                heapreplace(heads, following)
            else:
                heappop(heads)
                self._used_up(server)
            if kind == REQUEST and identifier > highest.get(server, identifier):
                highest[server] = identifier
                if self._waiting[server]:
                    self._release(server)
        return taken

    def _used_up(self, server: int) -> None:
        """A server's batch has been given."""
        if server in self._open:
            self.wanting.add(server)
        else:
            self._leave(server)

    def _leave(self, server: int) -> None:
        """A server's log is at its end: whoever waits for a request of it waits in vain."""
        self._highest.pop(server, None)
        self._release(server)

    def _release(self, cause: int) -> None:
        """Let those that wait for a server look again."""
        waiting, self._waiting[cause] = self._waiting[cause], []
        for entry in waiting:
            heappush(self._heads, entry)

    def _break_circle(self) -> None:
        """All servers wait for one another: one of them for a request that was never logged. Let one go on.

        Its piece is put aside, so this is the one case in which a server's own order is not kept.
        """
        piece = min(entry for waiting in self._waiting.values() for entry in waiting if id(entry) not in self._aside)
        self._aside.add(id(piece))
        server = piece[3]
        following = next(self._batches[server], None)
        if following is not None:
            heappush(self._heads, following)
        else:
            self._used_up(server)


def merge(logs: Mapping[int, Iterable[Entry]], batch: int = 1024) -> Iterator[Entry]:
    """The servers' logs, each in order of start, as one."""
    merger = Merger(logs)
    rest = {server: iter(log) for server, log in logs.items()}
    while not merger.finished:
        for server in tuple(merger.wanting):
            if following := list(islice(rest[server], batch)):
                merger.feed(server, following)
            else:
                merger.end(server)
        yield from merger.take(batch)


# -- what happens now --------------------------------------------------------------------------------------------

REMEMBERED = 1 << 17
"""Requests that are remembered as given, for the sake of pieces that come after them."""
HELD = 1 << 17
"""Pieces that wait for their requests, at most; beyond, the oldest is given without."""


class Live:
    """Gives entries that come in no order: after the window in which earlier ones may still come.

    A piece waits for its request as long as the request may be in flight, `patience` ns after the piece's start.
    `causes` are the servers whose logs are followed, each with the time from which on its requests are to be expected.
    """

    def __init__(self, causes: Mapping[int, int], patience: int) -> None:
        self.causes = dict(causes)
        self._patience = patience
        self._pending: list[Entry] = []
        self._given: dict[int, None] = {}  # identifiers of requests, the latest last
        self._held: dict[int, list[Entry]] = {}  # pieces by identifier, in the order in which they came
        self._held_count = 0

    def __repr__(self) -> str:
        return f"<Live {len(self._pending)} pending, {self._held_count} held>"

    def add(self, batch: Iterable[Entry]) -> None:
        self._pending += batch

    def take(self, until: int, now: int) -> list[Entry]:
        """What started at `until` or before and has nothing left to wait for."""
        self._pending.sort()
        end = bisect_left(self._pending, (until + 1,))
        ready, self._pending = self._pending[:end], self._pending[end:]
        taken: list[Entry] = []
        for entry in ready:
            _, kind, identifier, _, _ = entry
            if kind == REQUEST:
                taken.append(entry)
                self._given[identifier] = None
                if identifier in self._held:
                    self._let_go(identifier, taken)
            elif kind == PIECE and self._must_wait(entry, now):
                self._held.setdefault(identifier, []).append(entry)
                self._held_count += 1
            else:
                taken.append(entry)
        while len(self._given) > REMEMBERED:
            del self._given[next(iter(self._given))]
        self._give_up(taken, now)
        return taken

    def _must_wait(self, entry: Entry, now: int) -> bool:
        start, _, identifier, _, _ = entry
        followed_from = self.causes.get(identifier >> SERVER_SHIFT)
        return (
            followed_from is not None
            and followed_from <= start
            and start + self._patience > now
            and identifier not in self._given
        )

    def _give_up(self, taken: list[Entry], now: int) -> None:
        """Give what has waited too long, and what is too much."""
        while self._held:
            identifier, (oldest, *_) = next(iter(self._held.items()))
            if self._held_count <= HELD and self._must_wait(oldest, now):
                return
            self._let_go(identifier, taken)

    def _let_go(self, identifier: int, taken: list[Entry]) -> None:
        pieces = self._held.pop(identifier)
        self._held_count -= len(pieces)
        taken += pieces
