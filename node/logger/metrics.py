"""The page that Prometheus reads: GET /metrics on an address of cluster.yaml, answered by logger 0 on its loop.

A very small HTTP server: one request a connection, no body, bounded in every way. What stands on the page is
prometheus_client's affair; it is imported only where metrics are wanted, for it takes its time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memcluster.node.log.tally import Figures, Tally, bucket_end
from memcluster.node.log.text import event_name, kind_name, operation_name
from memcluster.node.transport.address import Address
from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import Stream

MAX_CONNECTIONS = 16
MAX_REQUEST = 8192
"""Bytes of a request's line and headers."""
PATIENCE = 10.0
"""Seconds a connection may last."""
LIMITS = [base * 10**power for power in range(-5, 1) for base in (1, 2.5, 5)] + [10.0]
"""The latency histogram's upper ends in seconds: 10 µs to 10 s."""

Page = tuple[str, bytes]
"""(content type, body)."""


class MetricsPage:
    """Serves the page that `make(answer)` makes, in its own time."""

    def __init__(self, loop: Loop, listener: socket.socket, make: Callable[[Callable[[Page], None]], None]) -> None:
        self.loop = loop
        self.make = make
        name = listener.getsockname()
        self.address = str(Address(path=name) if isinstance(name, str) else Address(*name[:2]))
        self._connections: set[_Visitor] = set()
        self._listener = Listener(loop, listener, self._accept)
        self._listener.start()

    def close(self) -> None:
        self._listener.stop()
        for visitor in tuple(self._connections):
            visitor.close()

    def left(self, visitor: _Visitor) -> None:
        """A connection is gone."""
        self._connections.discard(visitor)

    def _accept(self, sock: socket.socket) -> None:
        if len(self._connections) < MAX_CONNECTIONS:
            self._connections.add(_Visitor(self, sock))
        else:
            sock.close()


class _Visitor(Stream):
    """One connection: a request comes, a page goes out."""

    def __init__(self, page: MetricsPage, sock: socket.socket) -> None:
        super().__init__(page.loop, sock, [])
        self._page = page
        self._request = b""
        self._answered = False
        self._deadline = page.loop.after(PATIENCE, self.close)
        self.update()

    def close(self) -> None:
        super().close()
        self._deadline.cancel()
        self._page.left(self)

    def _readable(self) -> None:
        data = self.receive(MAX_REQUEST)
        if data is None:
            return
        if not data:
            self.close()
        elif not self._answered:
            self._request += data
            if b"\r\n\r\n" in self._request or b"\n\n" in self._request:
                self._answered = True
                self._answer()
            elif len(self._request) > MAX_REQUEST:
                self._answered = True
                self._send("431 Request Header Fields Too Large", "text/plain", b"too long\n")

    def _answer(self) -> None:
        method, _, rest = self._request.partition(b"\n")[0].decode("latin-1").strip().partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            self._send("405 Method Not Allowed", "text/plain", b"GET is served here\n")
        elif path != "/metrics":
            self._send("404 Not Found", "text/plain", b"the metrics are at /metrics\n")
        else:
            self._page.make(lambda page: self._send("200 OK", *page, head=method == "HEAD"))

    def _send(self, status: str, content: str, body: bytes, *, head: bool = False) -> None:
        lines = (
            f"HTTP/1.1 {status}",
            f"Content-Type: {content}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "\r\n",
        )
        self.outgoing += ["\r\n".join(lines).encode(), b"" if head else body]
        self.flush()

    def _flushed(self) -> None:
        if self._answered and not self.queued and self.open:
            try:
                self.sock.shutdown(socket.SHUT_WR)  # the reader closes when it has everything
            except OSError:
                self.close()

    def _lost(self, reason: str) -> None:  # noqa: ARG002 - whatever the reason
        self.close()


# -- what stands on it -------------------------------------------------------------------------------------------


def exposition(tallies: Mapping[int, Tally], loggers: int, sample: int) -> Page:
    """The page for the tallies of all servers; counts of a sampled log are scaled up."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(tallies, loggers, sample))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Collector:
    def __init__(self, tallies: Mapping[int, Tally], loggers: int, sample: int) -> None:
        self._tallies = tallies
        self._loggers = loggers
        self._sample = sample

    def collect(self) -> Iterator[Any]:
        """What prometheus_client calls."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        by = ["node", "kind", "operation"]
        done = CounterMetricFamily("memcluster_operations", "Requests and pieces that were done.", labels=by)
        moved = CounterMetricFamily("memcluster_bytes", "Bytes that they were about.", labels=by)
        failed = CounterMetricFamily("memcluster_errors", "Requests and pieces that failed.", labels=by)
        took = HistogramMetricFamily("memcluster_latency_seconds", "How long they took.", labels=by)
        what = ["node", "event"]
        events = CounterMetricFamily("memcluster_events", "What happened to nodes and clients.", labels=what)
        missing = CounterMetricFamily("memcluster_log_records_missing", "Records the log has lost.", labels=["node"])
        up = GaugeMetricFamily("memcluster_logger_up", "Whether the node's logger answers.", labels=["node"])
        for server in range(self._loggers):
            up.add_metric([f"logger{server}"], server in self._tallies)
        for server, tally in self._tallies.items():
            node = f"server{server}"
            for (kind, operation), one in sorted(tally.figures.items()):
                labels = [node, kind_name(kind), operation_name(operation)]
                done.add_metric(labels, one.count * self._sample)
                moved.add_metric(labels, one.bytes * self._sample)
                failed.add_metric(labels, one.errors * self._sample)
                took.add_metric(labels, _buckets(one, self._sample), one.time * self._sample / 1e9)
            for event, count in sorted(tally.events.items()):
                events.add_metric([node, event_name(event)], count)
            missing.add_metric([node], tally.missing)
        yield from (done, moved, failed, took, events, missing, up)


def _buckets(figures: Figures, sample: int) -> list[tuple[str, float]]:
    """(upper end in seconds, how many at most that long)."""
    found: list[tuple[str, float]] = []
    ordered = sorted(figures.latency.items())
    position = seen = 0
    for limit in LIMITS:
        while position < len(ordered) and bucket_end(ordered[position][0]) <= limit * 1e9:
            seen += ordered[position][1]
            position += 1
        found.append((repr(round(limit, 9)), seen * sample))
    return [*found, ("+Inf", figures.count * sample)]
