"""launcher/supervision/sockets.py: who holds an address that is taken."""

from __future__ import annotations

import pytest

from memcluster.launcher.supervision.sockets import in_the_way
from memcluster.node.transport.address import Address


@pytest.mark.parametrize(
    ("held", "wanted", "holds"),
    [
        (("127.0.0.1", 9), "127.0.0.1:9", True),
        (("127.0.0.1", 9), "localhost:9", True),
        (("127.0.0.2", 9), "127.0.0.1:9", False),
        (("127.0.0.1", 8), "127.0.0.1:9", False),
        (("0.0.0.0", 9), "127.0.0.1:9", True),
        (("::", 9), "127.0.0.1:9", True),
        (("127.0.0.2", 9), "0.0.0.0:9", True),
        (("127.0.0.2", 9), "[::]:9", True),
        (("::1", 9), "0.0.0.0:9", False),
        (("::1", 9), "127.0.0.1:9", False),
    ],
)
def test_who_is_in_the_way_of_an_address(held, wanted, holds):
    """Not everybody who listens at that port."""
    assert in_the_way(held, Address.parse(wanted)) is holds
