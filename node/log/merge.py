"""The order of the merged log: a cause stands before its effects. Pure; it knows neither files nor sockets.

A server appends a record when a request is done, so its log is in the order of ends. The merged log is in the order of
starts, for a request starts before its pieces do. Three steps lead there:

1. `survey` and `in_order` sort one server's log by start, a block at a time. While a process lives its clock goes only
   forward: what is late in a block was in flight before, however much of the block that is.
2. `Merger` merges the servers' sorted logs by start, one run of the cluster after the other. It does not trust their
   clocks: where a piece comes up before its request, its server waits until the request has been given. A server's
   identifiers grow with time, so one number a server tells which of its requests have been given or will never be.
3. `Live` does the same for what happens now (`logs -f`), when a request is logged after its pieces: a record waits for
   a short window, and a piece for its request. It does not trust the servers' clocks either.

Each holds what it must and no more: what was in flight where a block ended, a batch of each server, a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import Any, NamedTuple

from memcluster.node.log.record import (
    KEY,
    MAX_INCARNATION,
    RECORD,
    RECORD_SIZE,
    SERVER_SHIFT,
    Event,
    Kind,
    Record,
    first_identifier,
)

REQUEST = int(Kind.REQUEST)
PIECE = int(Kind.PIECE)
EVENT = int(Kind.EVENT)

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
    """What is to be known of a block that comes after `bound`."""
    late = [entry for entry in block if entry < bound]
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
    """Merges the logs of servers, each in order of start and given a batch at a time, one run after the other.

    `wanting` are the servers whose next batch must come, with `feed` or `end`, before `take` can give more. With
    `one_clock` no piece starts before its request and none waits: that is so where requests are logged by whoever
    answers them.
    """

    def __init__(self, servers: Iterable[int], *, one_clock: bool = False) -> None:
        self._open = set(servers)
        self._one_clock = one_clock
        self._run = 0
        self._later: dict[int, tuple[int, Sequence[Entry]]] = {}  # batches of later runs
        self._merger = _RunMerger(self._open, one_clock)

    def __repr__(self) -> str:
        return f"<Merger of run {self._run}, wants {sorted(self.wanting)}>"

    @property
    def wanting(self) -> set[int]:
        return self._merger.wanting

    @property
    def finished(self) -> bool:
        """Everything has been given."""
        return not self._later and self._merger.finished

    def feed(self, server: int, batch: Sequence[Entry], run: int = 0) -> None:
        """The next entries of a server that is wanting, all of one run, which is not before that of the last ones."""
        if run > self._run and batch:
            self._later[server] = run, batch
            self._merger.end(server)
        else:
            self._merger.feed(server, batch)

    def end(self, server: int) -> None:
        """A server has no more than it was fed."""
        self._open.discard(server)
        self._merger.end(server)

    def take(self, limit: int) -> list[Entry]:
        """The next entries in the order of the log, at most `limit`; none if some server is wanting, or at the end."""
        if self._merger.finished and self._later:
            self._begin_run(min(run for run, _ in self._later.values()))
        return self._merger.take(limit)

    def _begin_run(self, run: int) -> None:
        """All have given what they have of the runs before."""
        self._run = run
        due = {server: batch for server, (found, batch) in self._later.items() if found == run}
        for server in due:
            del self._later[server]
        self._merger = _RunMerger(due, self._one_clock)
        for server, batch in due.items():
            self._merger.feed(server, batch)
            if server not in self._open:
                self._merger.end(server)


class _RunMerger:
    """Merges what the servers logged in one run.

    A piece waits for its request only while the log of the server that took it is not at its end, and not for one
    before the first of that log: it is no longer kept, or not wanted. So a server whose first request is not known yet
    is asked for more. A server's own order is kept, but see `_break_circle`.
    """

    def __init__(self, servers: Iterable[int], one_clock: bool) -> None:
        self.wanting = set(servers)
        self._open = set(self.wanting)
        self._batches: dict[int, Iterator[Entry]] = {}
        self._heads: list[Entry] = []  # a heap: the next entry of each server that need not wait
        self._waiting: dict[int, list[Entry]] = {server: [] for server in self.wanting}  # by the server waited for
        self._aside: set[int] = set()  # id() of entries whose server has gone on without them; entries may be equal
        # Up to which identifier the requests of a server have been given or will never be; servers that nobody waits
        # for are not in it.
        self._highest = {} if one_clock else dict.fromkeys(self.wanting, -1)
        self._first = set(self._highest)  # servers of whose log no request has been seen yet

    @property
    def finished(self) -> bool:
        """Everything has been given."""
        return not (self._open or self._heads or any(self._waiting.values()))

    def feed(self, server: int, batch: Sequence[Entry]) -> None:
        """The next entries of a server that is wanting."""
        if batch:
            self.wanting.discard(server)
            if server in self._first:
                self._expect(server, batch)
            if server in self._batches:  # it was asked for more because its first request was not known
                self._batches[server] = iter([*self._batches[server], *batch])
                return
            following = iter(batch)
            heappush(self._heads, next(following))
            self._batches[server] = following

    def end(self, server: int) -> None:
        """A server has no more than it was fed."""
        self._open.discard(server)
        if server in self._first:  # and there is no request in it
            self._first.discard(server)
            del self._highest[server]
        if server in self.wanting:
            self.wanting.discard(server)
            if server not in self._batches:
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
                    if cause in self._first:
                        self.wanting.add(cause)
                        break
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

    def _expect(self, server: int, batch: Sequence[Entry]) -> None:
        """Where the first request of a server's log comes, none before it will."""
        for _, kind, identifier, _, _ in batch:
            if kind == REQUEST and identifier >> SERVER_SHIFT == server:
                self._first.discard(server)
                self._highest[server] = identifier - 1
                self._release(server)
                break

    def _used_up(self, server: int) -> None:
        """A server's batch has been given."""
        del self._batches[server]
        if server in self._open:
            self.wanting.add(server)
        else:
            self._leave(server)

    def _leave(self, server: int) -> None:
        """A server's log is at its end: whoever waits for a request of it waits in vain."""
        self._highest.pop(server, None)
        self._first.discard(server)
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


# -- what happens now --------------------------------------------------------------------------------------------

UNKNOWN = (1 << 64) - 1
"""No request of this server has been seen yet, so none is expected."""
REMEMBERED = 1 << 17
"""Requests of a server that are remembered as given, for the sake of pieces that come after them."""
HELD = 1 << 17
"""Pieces that wait for their requests, at most; beyond, the oldest is given without."""


class Live:
    """Gives entries that come in no order: each after the window in which earlier ones may still come.

    How long something has waited is told by the clock of this process (`now`, ns), and which requests are still to
    come by their identifiers: the servers' clocks, which may be hours apart, only put in order what is given together.
    A piece waits for its request for `patience` ns, as long as the request may be in flight.

    `floors` are the servers whose logs are followed, each with an identifier: requests up to this one have been given,
    or will never be.
    """

    def __init__(self, floors: Mapping[int, int], window: int, patience: int) -> None:
        self.floors = dict(floors)
        self._window = window
        self._patience = patience
        self._coming: deque[tuple[int, Sequence[Entry]]] = deque()  # when it came, and what
        self._given: dict[int, dict[int, None]] = {}  # by server: identifiers of requests, the latest last
        self._held: dict[int, tuple[int, list[Entry]]] = {}  # pieces by identifier, with the time since when
        self._held_count = 0

    def __repr__(self) -> str:
        return f"<Live {sum(len(batch) for _, batch in self._coming)} pending, {self._held_count} held>"

    def add(self, batch: Sequence[Entry], now: int) -> None:
        """What has just come."""
        self._coming.append((now, batch))

    @property
    def pending(self) -> Iterator[Entry]:
        """What has come and is not given yet."""
        for _, batch in (*self._coming, *self._held.values()):
            yield from batch

    def expect(self, batch: Iterable[Entry]) -> None:
        """Entries of a history that begins somewhere: requests before its first are not expected."""
        for _, kind, identifier, _, _ in batch:
            if kind == REQUEST:
                cause = identifier >> SERVER_SHIFT
                if identifier <= self.floors.get(cause, 0):
                    self.floors[cause] = identifier - 1

    def take(self, now: int) -> list[Entry]:
        """What has waited long enough, in order of start, together with what came later and started before."""
        due: list[Entry] = []
        while self._coming and self._coming[0][0] + self._window <= now:
            due += self._coming.popleft()[1]
        # A server whose clock is ahead takes nobody along: its entries would be later than all others.
        last = max((entry for entry in due if entry[0] <= now), default=())
        if last:
            for index, (came, batch) in enumerate(self._coming):
                due += [entry for entry in batch if entry <= last]
                self._coming[index] = came, [entry for entry in batch if entry > last]
        due.sort()
        return self.pass_on(due, now)

    def pass_on(self, batch: Iterable[Entry], now: int) -> list[Entry]:
        """What of these entries, and of those held before, has nothing left to wait for; in the order given."""
        taken: list[Entry] = []
        for entry in batch:
            _, kind, identifier, _, _ = entry
            if kind == PIECE and self._is_expected(identifier):
                self._held.setdefault(identifier, (now, []))[1].append(entry)
                self._held_count += 1
                continue
            taken.append(entry)
            if kind == REQUEST:
                self._remember(identifier)
                if identifier in self._held:
                    self._let_go(identifier, taken)
            elif kind == EVENT:
                self._start_again(entry, taken)
        while self._held:
            identifier, (since, _) = next(iter(self._held.items()))
            if self._held_count <= HELD and now < since + self._patience:
                break
            self._let_go(identifier, taken)
        return taken

    def _is_expected(self, identifier: int) -> bool:
        """Whether a request is still to come."""
        cause = identifier >> SERVER_SHIFT
        return identifier > self.floors.get(cause, UNKNOWN) and identifier not in self._given.get(cause, ())

    def _remember(self, identifier: int) -> None:
        """A request is given. Of those that are forgotten, and of those before them, pieces are not held any more."""
        cause = identifier >> SERVER_SHIFT
        given = self._given.setdefault(cause, {})
        given[identifier] = None
        if len(given) > REMEMBERED:
            oldest = next(iter(given))
            del given[oldest]
            if cause in self.floors:
                self.floors[cause] = max(self.floors[cause], oldest)

    def _start_again(self, entry: Entry, taken: list[Entry]) -> None:
        """If this is a server's start, no request of its earlier incarnations will come."""
        record = Record._make(RECORD.unpack(entry[4]))
        server = entry[3]
        if record.operation == Event.STARTED and record.offset <= MAX_INCARNATION and server in self.floors:
            floor = self.floors[server] = max(self.floors[server], first_identifier(server, record.offset) - 1)
            for identifier in [found for found in self._held if found >> SERVER_SHIFT == server and found <= floor]:
                self._let_go(identifier, taken)

    def _let_go(self, identifier: int, taken: list[Entry]) -> None:
        _, pieces = self._held.pop(identifier)
        self._held_count -= len(pieces)
        taken += pieces
