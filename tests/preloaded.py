"""Commands of this checkout without the time that Python takes to load them: forks of one process that has.

To load the command takes a fifth of a second of a processor, and the tests give thousands of them. What is forked has
the words, the folder, the environment and the pipes of a command that was executed, and is a child of a process that
waits for it alone. So is the first fork server of a supervisor that was forked like that: a child of the supervisor
which has loaded what the nodes need, with the descriptors, the environment and the signals of one that was executed.
Who looks at how something is loaded executes it: harness.run does.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

SHAPING = ("PYTHON", "LC_", "LANG")
"""What variables are called that are looked at when Python starts, or when modules are loaded."""
Environment = dict[str, str]


class Preloaded:
    """The process, started when the first command is given; it ends with this one."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._shape: Environment = {}

    def takes(self, environment: Environment) -> bool:
        """Whether a command with this environment is the same if it is forked."""
        return self._control is None or shape(environment) == self._shape

    def run(self, words: list[str], cwd: Path, environment: Environment, timeout: float) -> tuple[int, bytes, bytes]:
        """`memcluster …` or `memclient …`: its exit code and what it printed; its standard input is empty."""
        if self._control is None:
            self._start(environment)
        assert self._control is not None
        ours, theirs = socket.socketpair()
        out, its_out = os.pipe()
        err, its_err = os.pipe()
        empty = os.open(os.devnull, os.O_RDONLY)
        order = json.dumps({"words": words, "cwd": str(cwd), "environment": environment}).encode()
        with ours:
            try:
                socket.send_fds(self._control, [order], [empty, its_out, its_err, theirs.fileno()])
            finally:
                theirs.close()
                for descriptor in (empty, its_out, its_err):
                    os.close(descriptor)
            return _outcome(words, ours, out, err, timeout)

    def _start(self, environment: Environment) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._shape = shape(environment)
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,  # as a command's are: Python looks at what they are
        )  # fmt: skip
        theirs.close()
        atexit.register(process.wait)
        atexit.register(self._control.close)  # which is called first


def shape(environment: Environment) -> Environment:
    return {name: value for name, value in environment.items() if name.startswith(SHAPING)}


def _outcome(words: list[str], process: socket.socket, out: int, err: int, timeout: float) -> tuple[int, bytes, bytes]:
    """Wait for the ends of both pipes, whoever holds them, and of the process that waits for the command."""
    deadline = time.monotonic() + timeout
    said = {out: b"", err: b"", process.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for source in said:
            selector.register(source, selectors.EVENT_READ)
        try:
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    process.shutdown(socket.SHUT_WR)  # the command is killed then
                    process.recv(16)
                    raise subprocess.TimeoutExpired(words, timeout, said[out], said[err])
                for key, _ in ready:
                    if data := os.read(key.fd, 1 << 16):
                        said[key.fd] += data
                    else:
                        selector.unregister(key.fd)
        finally:
            os.close(out)
            os.close(err)
    return int(said[process.fileno()]), said[out], said[err]


# -- the process -----------------------------------------------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Fork who waits for a command, for each that is asked for. Returns in the command itself, which is to go on."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for those
    while True:
        order, descriptors, *_ = socket.recv_fds(control, 1 << 20, 4)
        if not order:
            os._exit(0)
        if not os.fork():
            control.close()
            return _wait_for_one(json.loads(order), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_one(order: dict, descriptors: list[int]) -> None:
    """Fork the command and tell its exit code; kill it when nobody waits for that any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, asker = descriptors
    pid = os.fork()
    if not pid:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = order["words"]
        return
    for descriptor in standard:
        os.close(descriptor)
    ended = os.pidfd_open(pid)
    with selectors.DefaultSelector() as selector, socket.socket(fileno=asker) as sock:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(sock, selectors.EVENT_READ)
        if ended not in {key.fd for key, _ in selector.select()}:
            signal.pidfd_send_signal(ended, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sock.send(str(code).encode())
    os._exit(0)


def fork_the_fork_server(execute: Callable[..., int]) -> Callable[..., int]:
    """What is to be called once in the place of multiprocessing's `execute`."""

    def fork(_program: str, words: list[str], kept: Sequence[int]) -> int:
        util.spawnv_passfds = execute  # the next one comes when the supervisor is at work, and is not alone in itself
        return os.fork() or _be_executed(words[-1], kept)

    return fork


def _be_executed(source: str, kept: Sequence[int]) -> NoReturn:
    """Run `python -c SOURCE` with what execve() leaves of a process."""
    code = 1
    try:
        atexit._clear()
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        lowest = 3
        for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
            os.closerange(lowest, descriptor)
            lowest = descriptor + 1
        del sys.modules["memcluster.node.zygote"]  # loading it is what makes a process the fork server
        exec(source, {"__name__": "__main__"})
    except SystemExit:
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


if __name__ == "__main__":
    import importlib
    from multiprocessing import util

    import setproctitle

    import memcluster.client.cli
    import memcluster.launcher.background
    import memcluster.launcher.cli
    import memcluster.launcher.clusterfile.config
    import memcluster.launcher.down
    import memcluster.launcher.start
    import memcluster.launcher.status
    import memcluster.launcher.supervision.supervisor
    import memcluster.launcher.up
    import memcluster.node.process
    from memcluster.launcher.supervision.forkserver import NEEDED
    from memcluster.node import topology

    for name in (*NEEDED, *map(topology.module, topology.names())):
        importlib.import_module(name)
    setproctitle.getproctitle()  # finds where its words stand before there is another environment
    util.spawnv_passfds = fork_the_fork_server(util.spawnv_passfds)
    serve(socket.socket(fileno=int(sys.argv[1])))
    {"memcluster": memcluster.launcher.start.main, "memclient": memcluster.client.cli.main}[sys.argv[0]]()
