"""The faults: each takes out what makes the code right in one place, or turns it round.

`PRESENT` are old ones of the simulator's own table; `MENDED` take out a mend of a fault that this code once had; the
`SUBTLE` ones are where the product is subtle; those of `ROUTING` are in the client's library. A fault is found by seeds
of the `topologies` in which its code runs; the others are passed over, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

PS, DI, CH, CR = "primary-secondary", "dispatcher", "chain", "client-routed"
LINK, FANOUT, PRIMARY = "node/forwarding/link.py", "node/forwarding/fanout.py", "node/topologies/primary_secondary.py"
DISPATCHER, CHAIN = "node/topologies/dispatcher.py", "node/topologies/chain.py"
GATES, ANSWERING, TAKING = "node/handover/gates.py", "node/handover/answering.py", "node/handover/taking.py"
SERVER, CONNECTION, MEMORY = "node/serving/server.py", "node/serving/connection.py", "node/serving/memory.py"
SERVICE = "node/serving/service.py"
KEEPER = "node/serving/keeper.py"
LIBRARY, ROUTER, ROUTED = "client/connection.py", "client/router.py", "client/routed.py"
IDENTIFIERS = "client/identifiers.py"
MERGE, HISTORY, WRITER = "node/log/merge.py", "node/log/history.py", "node/log/writer.py"


@dataclass(frozen=True)
class Planted:
    """A fault: in `file` each text of `changes`, which is there once, is replaced by the other."""

    name: str
    text: str
    file: str
    changes: tuple[tuple[str, str], ...]
    topologies: tuple[str, ...] = ()
    """Any, if none is named."""


def fault(name: str, text: str, file: str, old: str, new: str, *topologies: str) -> Planted:
    return Planted(name, text, file, ((old, new),), topologies)


PRESENT = (
    fault(
        "link-forgets",
        "a link does not send again what was in flight",
        LINK,
        'for sent in sorted(self._in_flight.values(), key=attrgetter("cookie")):',
        "for sent in ():",
        PS,
    ),
    fault(
        "no-record",
        "the log record of a request is not written",
        SERVICE,
        "        self.log.append(\n            start,\n",
        "        (self.log.append if identifier % 16 else lambda *_: None)(\n            start,\n",
    ),
    fault(
        "flush-primary",
        "FLUSH reaches the primary alone",
        PRIMARY,
        "pieces = self._everywhere",
        "pieces = self._everywhere[:1]",
        PS,
    ),
    fault(
        "repeats-unmarked",
        "repeated pieces are not marked in the log",
        LINK,
        "flags = sent.flags | REPEATED if self.connections > 1 else sent.flags",
        "flags = sent.flags",
        PS,
    ),
    fault(
        "trim-keeps-ends",
        "a TRIM leaves the bytes behind its last whole page",
        MEMORY,
        "                self._clear(last, end)\n",
        "",
    ),
    fault(
        "data-is-hole",
        "data is told as a hole",
        MEMORY,
        "int(Status.DATA if data else Status.HOLE | Status.ZERO)",
        "int(Status.HOLE | Status.ZERO)",
    ),
    fault(
        "views-not-settled",
        "a view that was half sent is not kept as it was before a write",
        MEMORY,
        "            reader.settle()\n",
        "            pass\n",
    ),
    fault(
        "no-gate",
        "a server writes to a client without the gate",
        ANSWERING,
        "self._has_gate = self._gates.take(self._gate, self.flush)",
        "self._gates.take(self._gate, self.flush)\n                return True",
        DI,
    ),
    fault(
        "gate-wakes-nobody",
        "who waits at a gate is not woken",
        GATES,
        "            self._wake(mark - place - 1)\n",
        "",
        DI,
    ),
    fault(
        "tickets-kept",
        "tickets are not given back",
        DISPATCHER,
        "            self._free_tickets.give_back(taken.ticket - 1)\n",
        "            pass\n",
        DI,
    ),
    fault(
        "slots-kept",
        "slots are not given back",
        SERVER,
        "            self.admission.give_back(connection.slot)\n",
        "",
    ),
    fault(
        "budget-kept",
        "the budget is not given back what was sent",
        CONNECTION,
        "            self._budget.left -= held - self._held\n",
        "            self._budget.left -= max(0, held - self._held)\n",
    ),
    fault(
        "link-turns-round",
        "a link sends again in the wrong order",
        LINK,
        'key=attrgetter("cookie")):',
        'key=attrgetter("cookie"), reverse=True):',
        PS,
    ),
    fault(
        "old-link-stays",
        "a secondary does not end an earlier link",
        PRIMARY,
        '            self._link.cut_off("")\n',
        "            pass\n",
        PS,
    ),
)

MENDED = (
    fault(
        "lands-before-others",
        "a payload is received in place although others may look",
        SERVICE,
        "if not first or self._guests > 1 or connection.in_flight or connection.outgoing:",
        "if not first or connection.in_flight or connection.outgoing:",
    ),
    fault(
        "newcomer-not-held",
        "a client comes in beside a payload that is being received in place",
        "node/serving/landing.py",
        "        if self._sender is None:\n            return\n        newcomer",
        "        if True:\n            return\n        newcomer",
    ),
    Planted(
        "old-order-in-new-chain",
        "an order outlives the chain that gave it",
        CHAIN,
        (
            ("            if passage is not self.taker:\n                return", "            if False:\n                return"),
            ("ours, lambda: passage is self.taker)", "ours, lambda: True)"),
        ),
        (CH,),
    ),
    fault(
        "unread-of-the-gone",
        "what waits unread of a client that is gone is begun",
        CONNECTION,
        "and not self.may_begin(WRITE):",
        "and False:",
    ),
    fault(
        "serial-goes-on",
        "with serial fan-out the next piece of a client that is gone is begun",
        FANOUT,
        "        return self._connection.may_begin(self._request.command)\n",
        "        return True\n",
        PS,
    ),
    fault(
        "link-repeats-for-the-gone",
        "a link sends again for a client that is gone",
        LINK,
        "            if not sent.wanted():\n",
        "            if False:\n",
        PS,
    ),
    fault(
        "chain-goes-on",
        "a chain goes on with an order that was overtaken, of a client that is gone",
        CHAIN,
        "if not order.error and self._is_late(order):",
        "if False:",
        CH,
    ),
    fault(
        "dispatcher-goes-on",
        "a dispatcher passes the next piece on for a client that is gone",
        DISPATCHER,
        "        if not taken.may_go_on():\n",
        "        if False:\n",
        DI,
    ),
    fault(
        "waiting-turns-round",
        "orders that waited for their server are passed on in the wrong order",
        TAKING,
        "        for taken, order, buffers in waiting:\n            if",
        "        for taken, order, buffers in waiting[::-1]:\n            if",
        DI,
        CH,
    ),
    fault(
        "no-cause-first",
        "a piece does not wait for its request in the merged log",
        MERGE,
        "if cause != server and identifier > highest.get(cause, identifier):",
        "if False:",
        PS,
    ),
    fault(
        "late-stay-late",
        "what is late in a block of the log is given where it stands",
        MERGE,
        "            late, taken = _late_in_order(stretches, index), 0\n        own = [entry for entry in block if entry >= stretch.bound]",
        "            late, taken = [], 0\n        own = list(block)",
    ),
    fault(
        "waits-for-all",
        "a primary that starts again serves nobody until all are there",
        PRIMARY,
        "        if self.spec.first:\n",
        "        if True:\n",
        PS,
    ),
    fault(
        "overtaken-by-failures",
        "what is left of a long zeroing leaves out the bytes of a newer write, though that finds no room",
        KEEPER,
        "                for buffer in payload:\n                    shard.write",
        "                self.overtake(offset, piece.length)\n                for buffer in payload:\n                    shard.write",
    ),
)

SUBTLE = (
    fault(
        "payload-not-copied",
        "a payload that waits for a link lies in the receive buffer",
        FANOUT,
        "(payload,) if request.owned else (payload.tobytes(),)",
        "(payload,)",
        PS,
    ),
    fault(
        "piece-error-lost",
        "the error of a piece is not the request's",
        FANOUT,
        "            if not request.error:\n                request.refuse(reply.error",
        "            if False:\n                request.refuse(reply.error",
        PS,
    ),
    fault(
        "late-reply-comes",
        "a link gives up and keeps the connection on which the reply may come",
        LINK,
        '                self._wire.lose("no reply in time")\n',
        "                pass\n",
        PS,
    ),
    fault(
        "half-reply-stays",
        "what has come of a reply stays when the request is sent again",
        LINK,
        "            sent.reset()\n            flags",
        "            flags",
        PS,
    ),
    fault(
        "own-piece-unlogged",
        "the primary's own piece is not in the log",
        FANOUT,
        "        server.log_piece(began, self._identifier, piece, request.command, request.flags & PASSED_ON, error)\n",
        "",
        PS,
    ),
    fault(
        "flush-one-owner",
        "a dispatcher's FLUSH goes to one server",
        DISPATCHER,
        "return [Piece(index, 0, 0, ()) for index in self._owners]",
        "return [Piece(index, 0, 0, ()) for index in self._owners[:1]]",
        DI,
    ),
    fault(
        "gate-not-dirty",
        "a gate does not tell that its holder died within a reply",
        GATES,
        "        if self._memory[place]:\n",
        "        if False:\n",
        DI,
    ),
    fault(
        "gate-given-early",
        "a gate is given back before all is sent",
        ANSWERING,
        "    def _flushed(self) -> None:\n        if not self.queued:\n            self._let_go()",
        "    def _flushed(self) -> None:\n        self._let_go()\n        if not self.queued:",
        DI,
    ),
    fault(
        "half-said-goes-on",
        "a server lets go of a client within a reply, and others go on",
        ANSWERING,
        "            if self._has_gate and self.queued:\n",
        "            if False:\n",
        DI,
    ),
    fault(
        "gate-waits-for-the-dead",
        "a client that left keeps its gate until a server lets go of it that is dead",
        DISPATCHER,
        "        for client in list(self._leaving):\n            self.dropped(link.number, client)\n",
        "",
        DI,
    ),
    fault(
        "gate-not-reset",
        "a gate is not cleared for the next client",
        DISPATCHER,
        "                self._gates.reset(gate)\n",
        "                self._gates._make_room(self._gates._place(gate))\n",
        DI,
    ),
    fault(
        "ticket-reused",
        "a ticket is another request's before all pieces are done",
        DISPATCHER,
        "        return ticket + 1\n",
        "        self._free_tickets.give_back(ticket)\n        return ticket + 1\n",
        DI,
    ),
    fault(
        "ticket-forgets",
        "a ticket keeps the error of the last piece alone",
        GATES,
        "        failed = failed or error\n",
        "        failed = error\n",
        DI,
    ),
    fault(
        "ticket-short",
        "a request that is given up leaves its later pieces on the ticket",
        DISPATCHER,
        "        pieces = 1 + len(taken.later)\n",
        "        pieces = 1\n",
        DI,
    ),
    fault(
        "lost-orders-kept",
        "what a dead server had stays in flight when it is back",
        TAKING,
        "        for taken in lost.values():\n            self.one_done(taken)\n",
        "",
        DI,
        CH,
    ),
    fault(
        "victims-stay",
        "a client whose reply may be half sent keeps its connection when the server is lost",
        TAKING,
        '                    end_stream(connection.sock)\n                    connection._lost("")\n',
        "",
        DI,
        CH,
    ),
    fault(
        "no-drop",
        "servers are not told that a client is gone",
        TAKING,
        "                passage.send(Order(DROP, client=connection.number))\n",
        "                pass\n",
        DI,
        CH,
    ),
    fault(
        "handed-half-said",
        "a socket is handed along while a reply is half said",
        TAKING,
        "            if self.queued:\n                return False\n",
        "",
        CH,
    ),
    fault(
        "logged-twice",
        "each server that has a part in an answer logs the request",
        ANSWERING,
        "        if last:\n            error, order.error",
        "        if True:\n            error, order.error",
        DI,
    ),
    fault(
        "done-too-soon",
        "an order counts as done before its reply has left",
        ANSWERING,
        "    def _flushed(self) -> None:\n        if not self.queued:\n            self._let_go()\n            said",
        "    def _flushed(self) -> None:\n        if True:\n            if not self.queued:\n                self._let_go()\n            said",
        DI,
        CH,
    ),
    fault(
        "chain-not-renewed",
        "a new chain before a server leaves the one behind it as it was",
        CHAIN,
        "            self._next.renew()\n",
        "",
        CH,
    ),
    fault(
        "welcome-too-soon",
        "a server welcomes the one before it while there is none behind it",
        CHAIN,
        "if self.taker is not None and (self._next is None or self._next.passage is not None):",
        "if self.taker is not None:",
        CH,
    ),
    fault(
        "break-stays",
        "a chain that is broken behind a server goes on before it",
        CHAIN,
        '    def _break(self) -> None:\n        """The chain behind is broken: so it is for all before."""\n        if self.taker is not None:',
        '    def _break(self) -> None:\n        """The chain behind is broken: so it is for all before."""\n        if False:',
        CH,
    ),
    fault(
        "head-answers",
        "a chain's head answers what is its own although a chain is there",
        CHAIN,
        "return self._alone or (self.links[1].passage is None and connection.open)",
        "return connection.open",
        CH,
    ),
    fault(
        "read-in-server-order",
        "the parts of a read that spans servers stay in the servers' order",
        "node/handover/part.py",
        "    joined.sort(key=lambda part: part[0])\n",
        "",
        DI,
        CH,
    ),
    fault(
        "hole-not-filled",
        "a hole that is written to stays one in the map of pages",
        MEMORY,
        '            self._pages[first:last] = b"\\1" * (last - first)\n        return self._view',
        "        return self._view",
    ),
    fault(
        "file-not-looked-at",
        "a server that starts again takes its shard for empty",
        MEMORY,
        "self._pages = _find_data(self._fd, size)",
        "self._pages = bytearray(-(-size // PAGE))",
    ),
    fault(
        "mixture-lent",
        "of a read of data and holes the data is lent and not copied",
        MEMORY,
        "                copied += self._view[start:end]\n",
        "                found += [copied, self._view[start:end]] if copied else [self._view[start:end]]\n                copied = bytearray()\n",
    ),
    fault(
        "kept-room-not-zeroed",
        "WRITE_ZEROES with NO_HOLE clears the first page alone",
        MEMORY,
        "        self.room(offset, length)\n        self._clear(offset, end)",
        "        self.room(offset, length)\n        self._clear(offset, min(end, offset + PAGE))",
    ),
    fault(
        "in-place-behind-own",
        "a payload is received in place while earlier requests of its client wait",
        SERVICE,
        "if not first or self._guests > 1 or connection.in_flight or connection.outgoing:",
        "if not first or self._guests > 1:",
    ),
    fault(
        "parked-stay",
        "requests that were parked are not gone on with",
        CONNECTION,
        "            self.loop.soon(self._resume)\n",
        "            pass\n",
    ),
    fault(
        "doubles-given",
        "a piece that was done twice stands in the log twice",
        HISTORY,
        "        if not has_repeats(data):\n",
        "        if True:\n",
        PS,
    ),
    fault(
        "repeats-dropped",
        "a piece that is marked as repeated is left out, whether or not it was logged before",
        HISTORY,
        "                if entry[1:3] in logged and is_repeat(entry[4]):",
        "                if is_repeat(entry[4]):",
        PS,
    ),
    fault(
        "segment-eats-one",
        "the record that finds its segment full is not written",
        WRITER,
        "            self._rotate()\n        if self.error:",
        "            self._rotate()\n            return\n        if self.error:",
    ),
    fault(
        "log-begins-anew",
        "a server that starts again numbers its records from the start",
        WRITER,
        "        self.sequence += found.sequence\n",
        "",
    ),
)

ROUTING = (
    fault(
        "pieces-swapped",
        "the library puts stripes of a READ into the places of others",
        ROUTED,
        "            for start, end in piece.spans:\n",
        "            for start, end in piece.spans[::-1]:\n",
        CR,
    ),
    fault(
        "again-and-again",
        "the library sends what was in flight at a loss again, twice",
        LIBRARY,
        "            self._say(cookie, pending, repeated)\n",
        "            self._say(cookie, pending, repeated)\n            self._say(cookie + (1 << 40), pending, repeated)\n",
        CR,
    ),
    fault(
        "again-unmarked",
        "the library does not mark what it sends again",
        LIBRARY,
        "repeated = REPEATED if self._routed else 0",
        "repeated = 0",
        CR,
    ),
    fault(
        "again-without-the-first",
        "the library does not send the first of what was in flight again",
        LIBRARY,
        "        for cookie, pending in self._in_flight.items():\n",
        "        for cookie, pending in list(self._in_flight.items())[1:]:\n",
        CR,
    ),
    fault(
        "again-backwards",
        "the library sends what was in flight again, the last first",
        LIBRARY,
        "        for cookie, pending in self._in_flight.items():\n",
        "        for cookie, pending in reversed(self._in_flight.items()):\n",
        CR,
    ),
    fault(
        "piece-fails-unheard",
        "the library does not tell that a piece has failed",
        ROUTED,
        "reply.error = reply.error or outcome.error",
        "reply.error = 0",
        CR,
    ),
    fault(
        "flush-one",
        "the library sends a FLUSH to one server alone",
        ROUTER,
        "if found is not None]\n",
        "if found is not None][:1]\n",
        CR,
    ),
    fault(
        "identifier-twice",
        "the library gives two requests one identifier",
        IDENTIFIERS,
        "        self._last_used += 1\n",
        "        self._last_used += self._last_used % 8 > 0\n",
        CR,
    ),
    fault(
        "map-forgets",
        "the library does not begin again with another map what was under way",
        ROUTER,
        "            for routed in list(self._under_way.values()):\n                self._begin(routed)\n",
        "",
        CR,
    ),
    fault(
        "map-unmarked",
        "the library does not mark what it sends again after a change of the map",
        ROUTED,
        "self._more_flags = REPEATED if self._begun else 0",
        "self._more_flags = 0",
        CR,
    ),
    fault(
        "no-other-map",
        "the library does not look for another map",
        ROUTER,
        "                        self._search = Errand(self._searching())\n",
        "                        pass\n",
        CR,
    ),
)

FAULTS = (*PRESENT, *MENDED, *SUBTLE, *ROUTING)
