"""How the loop of a server waits while a client sends one request after the answer to the other.

The next request is there a few microseconds after the answer. To sleep until then, and to be woken, would take longer
than the request itself, for the server as for its client. Two things help, and each is left when it does not pay:

- The loop looks for something to do before it sleeps (Look), which saves the server's own wake-up.
- Idle processors stay awake (Awake), which saves the client's, and those of the servers that work for this one. In a
  virtual machine to sleep is to leave it, and the way back takes 20 to 50 us.
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from time import perf_counter

from memcluster.node.transport.loop import Wait

SPIN = 50e-6
"""Seconds that a loop looks for something to do before it sleeps."""
MOST_DOUBT = 1 << 12
"""Short sleeps after looks in vain until the next look, at most."""
SHORT = 500e-6
"""Seconds of a wait within a conversation, at most: a client that routes by itself comes to each server in turn."""
WINDOW = 1024
"""Waits that are judged together: 40 ms of a conversation."""
ASK, DROP = 0.4, 0.2
"""Shares of the time that a server waits: it asks above the one, and drops the request below the other. One request in
flight leaves it 0.5, and 0.3 with processors awake; many leave it 0.15 at most, and gain nothing from that."""
LINGER = 0.01
"""Seconds of silence that end a conversation."""
DEVICE = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")


def eager(wait: Wait, *, look: bool) -> Wait:
    """`wait` for the loop of a server; it looks before it sleeps if it may have a processor for that."""
    if look:
        wait = Look(wait).wait
    if may_keep_awake():
        wait = Awake(wait, DEVICE).wait
    return wait


def may_keep_awake() -> bool:
    """The device is root's; it is tried with the idle driver of virtual machines alone."""
    return os.access(DEVICE, os.W_OK) and DRIVER.exists() and DRIVER.read_text().strip() == "haltpoll"


def keep_awake(device: Path = DEVICE) -> FileIO:
    """A request to the kernel, of PM QoS (Documentation/power/pm_qos_interface.rst): as long as the file is open, idle
    processors stay awake; so it ends with the process, however that ends. Raises OSError."""
    request = FileIO(device, "r+")
    request.write(bytes(4))  # microseconds that a processor may take to wake up, a native int: none
    return request


class Look:
    """Looks for something to do for SPIN seconds, when the last sleeps were as short as that.

    It pays only while the client has a processor of its own, so a look in vain costs a doubled number of short sleeps
    before the next one, and after a long sleep nothing is tried at all.
    """

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._doubt = 1  # short sleeps to come before the next look
        self._penalty = 1

    def wait(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        wait = self._wait
        if timeout is not None and timeout <= SPIN:
            return wait(timeout, most)
        now = perf_counter()
        if not self._doubt:
            until = now + SPIN
            while now < until:
                if found := wait(0, most):
                    self._penalty = 1
                    return found
                now = perf_counter()
            self._penalty = min(2 * self._penalty, MOST_DOUBT)
            self._doubt = self._penalty
        found = wait(timeout, most)
        if perf_counter() - now < SPIN:
            self._doubt -= 1
        return found


class Awake:
    """Keeps the machine's idle processors awake while a conversation goes on: single requests of 4 KiB become 2.6 times
    as fast."""

    def __init__(self, wait: Wait, device: Path) -> None:
        self._wait = wait
        self._device = device
        self._request: FileIO | None = None
        self._waits = 0
        self._waited = 0.0
        self._since = perf_counter()

    def wait(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        began = perf_counter()
        if self._request is not None and (timeout is None or timeout > LINGER):
            found = self._wait(LINGER, most)
            if not found:
                self._drop()
        else:
            found = self._wait(timeout, most)
        now = perf_counter()
        if now - began < SHORT:
            self._waited += now - began
        self._waits += 1
        if self._waits == WINDOW:
            share = self._waited / (now - self._since)
            if share < DROP:
                self._drop()
            elif share > ASK and self._request is None:
                with suppress(OSError):  # no descriptors left: clients need them more
                    self._request = keep_awake(self._device)
            self._waits = 0
            self._waited = 0.0
            self._since = now
        return found

    def _drop(self) -> None:
        if self._request is not None:
            self._request.close()
            self._request = None
