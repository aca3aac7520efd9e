"""Another user of the machine, as a program: becomes one, tries what its argument says, and prints what it got. It is
started as root, so that Python can be loaded wherever it lies.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
from contextlib import suppress

NOBODY = 65534
PATIENCE = 30.0
MOST = 1 << 16


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise SystemExit("it is still root")


def connect(address: list[str | int] | str) -> socket.socket:
    """To (host, port), or to the path of a unix socket. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(address if isinstance(address, str) else tuple(address))
    except OSError:
        sock.close()
        raise
    return sock


def hear(address: list[str | int] | str, words: bytes, stay: bool = False) -> str:
    """What is answered to these words until the other side closes, in hex; or the name of the error. To who stays more
    may be said."""
    heard = b""
    try:
        sock = connect(address)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    with sock:
        with suppress(OSError):  # it is cut off in the middle, perhaps
            sock.sendall(words)
            if not stay:
                sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while len(heard) < MOST and (part := sock.recv(MOST)):
                heard += part
    return heard.hex()


def took(path: str) -> list[str]:
    """What of a file or directory, and of all below it, can be read or changed."""
    found = []
    for flags, word in ((os.O_RDONLY, "read"), (os.O_WRONLY, "written")):
        try:
            kind = os.lstat(path).st_mode
            if stat.S_ISLNK(kind):
                os.readlink(path)
            elif stat.S_ISSOCK(kind):
                continue  # those are connected to
            elif stat.S_ISDIR(kind) and word == "written":
                mine = os.path.join(path, "mine")
                os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                os.unlink(mine)
            else:
                os.close(os.open(path, flags))
        except OSError:
            continue
        found.append(f"{path} can be {word}")
    try:
        below = os.listdir(path)
    except OSError:
        below = []
    return found + [one for name in below for one in took(os.path.join(path, name))]


def main() -> None:
    orders = json.loads(sys.argv[1])
    become(NOBODY)
    held = [connect(address) for address in orders.get("hold", []) for _ in range(orders["each"])]
    if held:
        print("held", flush=True)
        sys.stdin.read()  # until the test has seen enough
        return
    words = [bytes.fromhex(one) for one in orders["words"]] * orders.get("times", 1)
    stay = orders.get("stay", False)
    heard = [[address, [hear(address, one, stay) for one in words]] for address in orders["addresses"]]
    print(json.dumps({"heard": heard, "took": [one for path in orders.get("paths", []) for one in took(path)]}))


if __name__ == "__main__":
    main()
