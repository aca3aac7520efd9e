"""The account that a cluster of root's runs as: `user` in cluster.yaml is USER or USER:GROUP, as in docker compose."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """A user of this machine, and the groups that he is in; `name` is how cluster.yaml has it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def parse_account(text: str) -> Account:
    """Names or numbers. Raises ValueError."""
    user, colon, group = text.partition(":")
    entry = _user(user)
    uid = int(user) if entry is None else entry.pw_uid
    if colon:
        gid = _group(group)
        return Account(text, uid, gid, (gid,))
    if entry is None:
        return Account(text, uid, uid, (uid,))
    return Account(text, uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(_number(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if name.isdecimal():
            return None
        raise ValueError(f"there is no user {name!r} on this machine") from None


def _group(name: str) -> int:
    try:
        return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name!r} on this machine") from None


def _number(text: str) -> int:
    if not (text.isascii() and len(text) < 11 and int(text) < (1 << 32) - 1):
        raise ValueError(f"{text!r} is no number of a user or a group")
    return int(text)
