"""Where faults matter that seldom do: by the fault's name, what is put where in the code as it should be.

It says `REACHED(name, whether)` where the fault would make a difference. A run that does not get there is the same with
the fault as without it, so one run with all marks tells of all these faults for which of them it is worth planting.
"""

from __future__ import annotations

MARKS: dict[str, tuple[str, str]] = {
    "old-link-stays": (
        '            self._link.cut_off("")\n',
        """            old = getattr(self._link.sock, "description", None)
            waits = old is not None and (old.inbox or (old.peer is not None and old.peer.outbox))
            REACHED("old-link-stays", self._link.open and (waits or self._link.in_flight or self._link.session.waiting))
            self._link.cut_off("")
""",
    ),
    "newcomer-not-held": (
        "            return\n        newcomer.hold()",
        '            return\n        REACHED("newcomer-not-held")\n        newcomer.hold()',
    ),
    "old-order-in-new-chain": (
        "            if passage is not self.taker:\n",
        '            if passage is not self.taker:\n                REACHED("old-order-in-new-chain")\n',
    ),
    "unread-of-the-gone": (
        "                    if request.command in CHANGING and not request.error:\n",
        """                    if request.command in CHANGING and not request.error:
                        REACHED("unread-of-the-gone")
""",
    ),
    "serial-goes-on": (
        "            if not self._request.error and not self.wanted():\n",
        """            if not self._request.error and not self.wanted():
                REACHED("serial-goes-on")
""",
    ),
    "link-repeats-for-the-gone": (
        "            if not sent.wanted():\n",
        '            if not sent.wanted():\n                REACHED("link-repeats-for-the-gone")\n',
    ),
    "chain-goes-on": (
        "                if not order.error and self._is_late(order):\n",
        """                if not order.error and self._is_late(order):
                    REACHED("chain-goes-on")
""",
    ),
    "dispatcher-goes-on": (
        "        if not taken.may_go_on():\n",
        '        if not taken.may_go_on():\n            REACHED("dispatcher-goes-on")\n',
    ),
    "overtaken-by-failures": (
        "        except OSError as error:\n            done(error, [], None)\n",
        """        except OSError as error:
            REACHED("overtaken-by-failures", self.under_way)
            done(error, [], None)
""",
    ),
    "late-reply-comes": (
        '                self._wire.lose("no reply in time")\n',
        """                REACHED("late-reply-comes")
                self._wire.lose("no reply in time")
""",
    ),
    "half-reply-stays": (
        "            sent.reset()\n            flags",
        """            REACHED("half-reply-stays", sent.pieces or sent.extents or sent.error)
            sent.reset()
            flags""",
    ),
    "gate-not-dirty": (
        "            died = self._memory[place] - 1\n",
        '            died = self._memory[place] - 1\n            REACHED("gate-not-dirty")\n',
    ),
    "half-said-goes-on": (
        "            if self._has_gate and self.queued:\n",
        '            if self._has_gate and self.queued:\n                REACHED("half-said-goes-on")\n',
    ),
    "gate-not-reset": (
        "                self._gates.reset(gate)\n",
        """                place = self._gates._place(gate)
                REACHED("gate-not-reset", any(self._gates._memory[place : place + 128]))
                self._gates.reset(gate)
""",
    ),
    "ticket-forgets": (
        "        failed = failed or error\n",
        '        REACHED("ticket-forgets", failed and not error)\n        failed = failed or error\n',
    ),
    "ticket-short": (
        "        pieces = 1 + len(taken.later)\n",
        '        pieces = 1 + len(taken.later)\n        REACHED("ticket-short", taken.ticket and taken.later)\n',
    ),
    "handed-half-said": (
        "            if self.queued:\n                return False\n",
        """            if self.queued:
                REACHED("handed-half-said")
                return False
""",
    ),
    "done-too-soon": (
        "    def _flushed(self) -> None:\n        if not self.queued:\n            self._let_go()\n            said",
        """    def _flushed(self) -> None:
        REACHED("done-too-soon", self.queued and self._said)
        if not self.queued:
            self._let_go()
            said""",
    ),
    "in-place-behind-own": (
        "        if not first or self._guests > 1 or connection.in_flight or connection.outgoing:\n",
        """        mine = connection.in_flight or connection.outgoing
        REACHED("in-place-behind-own", first and self._guests <= 1 and mine)
        if not first or self._guests > 1 or connection.in_flight or connection.outgoing:
""",
    ),
    "lands-before-others": (
        "        if not first or self._guests > 1 or connection.in_flight or connection.outgoing:\n",
        """        alone = not (connection.in_flight or connection.outgoing)
        REACHED("lands-before-others", first and self._guests > 1 and alone)
        if not first or self._guests > 1 or connection.in_flight or connection.outgoing:
""",
    ),
    "waits-for-all": (
        "        if self.spec.first:\n",
        '        REACHED("waits-for-all", not self.spec.first)\n        if self.spec.first:\n',
    ),
    "again-backwards": (
        "        for cookie, pending in self._in_flight.items():\n",
        """        REACHED("again-backwards", len(self._in_flight) > 1)
        for cookie, pending in self._in_flight.items():
""",
    ),
    "map-forgets": (
        "            for routed in list(self._under_way.values()):\n                self._begin(routed)\n",
        """            REACHED("map-forgets", self._under_way)
            for routed in list(self._under_way.values()):
                self._begin(routed)
""",
    ),
    "map-unmarked": (
        "        self._more_flags = REPEATED if self._begun else 0\n",
        """        REACHED("map-unmarked", self._begun)
        self._more_flags = REPEATED if self._begun else 0
""",
    ),
    "no-other-map": (
        "                        self._search = Errand(self._searching())\n",
        """                        REACHED("no-other-map")
                        self._search = Errand(self._searching())
""",
    ),
    "parked-stay": (
        "            self.loop.soon(self._resume)\n",
        '            REACHED("parked-stay")\n            self.loop.soon(self._resume)\n',
    ),
    "gate-waits-for-the-dead": (
        "        for client in list(self._leaving):\n",
        """        waited = any(link.number in servers for _, servers in self._leaving.values())
        REACHED("gate-waits-for-the-dead", waited)
        for client in list(self._leaving):
""",
    ),
}
