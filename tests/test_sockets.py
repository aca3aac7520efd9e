"""launcher/supervision/sockets.py: who holds an address that is taken, and who may connect to one that is not."""

from __future__ import annotations

import grp
import os
import socket
import stat

import pytest

from memcluster.launcher.supervision.sockets import Access, AddressTaken, CannotListen, bind, in_the_way, release
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


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_no_socket_listens_to_other_machines_unasked(address):
    """Were the name another's since cluster.yaml was checked: what was bound is looked at."""
    with pytest.raises(CannotListen, match="can be reached from other machines"):
        bind(Address.parse(address))
    bind(Address.parse(address), Access(network=True)).close()


def test_a_unix_socket_is_its_owners_alone_unless_it_is_opened(tmp_path):
    """Whatever the umask: at no moment may more connect."""
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        for access, mode in ((Access(), 0o600), (Access(0o660, grp.getgrgid(os.getgid()).gr_name), 0o660)):
            sock = bind(Address(path=str(path)), access)
            found = path.lstat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, os.getgid())
            release(sock)
    finally:
        os.umask(before)
    assert not path.exists()


def test_what_lies_in_the_place_of_a_unix_socket_stays(tmp_path):
    """A link is not followed, to a socket on which nobody listens either."""
    stale, link = tmp_path / "stale", tmp_path / "link"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    link.symlink_to(stale)
    with pytest.raises(AddressTaken, match="by something that is no socket"):
        bind(Address(path=str(link)))
    assert link.is_symlink()
    assert stale.exists()
    release(bind(Address(path=str(stale))))
