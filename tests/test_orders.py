"""launcher/supervision/orders.py: what is an order, and what is wrong with what is none."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from memcluster.client.console import Failure
from memcluster.launcher.down import Hosts, down
from memcluster.launcher.run.control import FrameStream
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.supervision.orders import Down, Fault, Kill, OrderError, Status, parse


@pytest.mark.parametrize(
    ("head", "order"),
    [
        ({"do": "status"}, Status()),
        ({"do": "kill"}, Kill()),
        ({"do": "down"}, Down()),
        ({"do": "down", "drain": True, "timeout": 5}, Down(drain=True, timeout=5)),
        ({"do": "fault", "kind": "kill", "targets": ["server1"]}, Fault("kill", ["server1"])),
        (
            {"do": "fault", "kind": "slow", "targets": ["a", "b"], "seconds": None, "delay": 0.5},
            Fault("slow", ["a", "b"], None, 0.5),
        ),
    ],
)
def test_an_order_is_read(head, order):
    """With what it says, and the defaults of what it does not say."""
    assert parse(head) == order


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, "do must be one of abort, apply, status, config, watch, kill, down, fault"),
        ({"do": ["status"]}, "do must be one of"),
        ({"do": "dance"}, "got 'dance'"),
        ({"do": "status", "x": 1}, "unexpected keyword argument 'x'"),
        ({"do": "status", "drain": True}, "unexpected keyword argument 'drain'"),
        ({"do": "down", "drain": 1}, "drain must be true or false"),
        ({"do": "down", "timeout": -1}, "timeout must be seconds, or null"),
        ({"do": "down", "timeout": True}, "timeout must be seconds, or null"),
        ({"do": "down", "timeout": float("nan")}, "timeout must be seconds, or null"),
        ({"do": "down", "timeout": float("inf")}, "timeout must be seconds, or null"),
        ({"do": "fault", "targets": ["server1"]}, "missing 1 required positional argument: 'kind'"),
        ({"do": "fault", "kind": "tickle", "targets": ["server1"]}, "kind must be one of pause"),
        ({"do": "fault", "kind": [], "targets": ["server1"]}, "kind must be one of pause"),
        ({"do": "fault", "kind": "kill", "targets": []}, "targets must be one or two names"),
        ({"do": "fault", "kind": "kill", "targets": [1]}, "targets must be one or two names"),
        ({"do": "fault", "kind": "kill", "targets": "server1"}, "targets must be one or two names"),
        ({"do": "fault", "kind": "slow", "targets": ["a"], "delay": None}, "delay must be seconds"),
        ({"do": "apply", "config": {}, "stamp": "", "dry": False}, "config must have file, name, memory"),
        ({"do": "apply", "config": 5, "stamp": 7, "dry": False}, "stamp must be a text"),
    ],
)
def test_what_is_no_order_is_refused_with_a_sentence(head, words):
    """It names the field and what it must be."""
    with pytest.raises(OrderError) as refused:
        parse(head)
    assert words in str(refused.value)


def test_a_supervisor_that_does_not_understand_down_is_quoted():
    """One of another version, perhaps; the command ends at once, as a failure."""
    name = f"orders-{os.getpid()}"
    run = RunDirectory(name)
    run.acquire()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run.control))
            listener.listen()

            def never() -> Hosts:
                raise AssertionError("there is nothing to be asked of other hosts")

            def answer() -> None:
                stream = FrameStream(listener.accept()[0])
                order = next(stream.frames(None))
                stream.send({"error": f"there is no {order['do']!r} here"})
                stream.close()

            supervisor = threading.Thread(target=answer, daemon=True)
            supervisor.start()
            with pytest.raises(Failure, match="there is no 'down' here"):
                down(name, timeout=None, drain=False, tell=print, paths=list, hosts=never)
            supervisor.join()
    finally:
        run.remove()
        run.release()
