"""How much memory all clients of a process may take up together.

Each client has a bound of its own (see connection.py); this is the bound on the sum. A client that has nothing in
flight may always begin one request, so nobody starves while others hold what there is: the total is at most `limit`
and one request a client.
"""

from __future__ import annotations


class Budget:
    """Counts the bytes that requests in flight and unsent replies may still take up."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        """Below 0 when the clients' last requests went beyond the limit."""

    def __repr__(self) -> str:
        return f"<Budget with {self.left} bytes left>"
