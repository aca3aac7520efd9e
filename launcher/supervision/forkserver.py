"""The process from which all nodes are forked: started, kept running, stopped.

It takes longest to load, so it is started first: this module needs little of the others.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import types
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from memcluster.launcher.run.identity import Identity, describe_exit
from memcluster.launcher.speech import SPEECH
from memcluster.node.nbd.printable import printable_lines
from memcluster.node.zygote import OUTPUT, SUPERVISOR

CONTEXT = multiprocessing.get_context("forkserver")
_output = open(os.memfd_create("fork server's output"), "r+b")  # noqa: SIM115 - as long as this process
"""What the fork server says, and a node before it has a file of its own; passed on when it has died or is stopped."""
NEEDED = ("multiprocessing.popen_forkserver", "hmac")
"""What every node would load by itself to read what it is to run, and to meet the others: 4 ms of each."""


def start_fork_server(directory: Path, *modules: str) -> None:
    """Start the process from which all nodes are forked, with the nodes' modules and these loaded. The command line's
    own modules are not for the nodes, so the main module is hidden from it. Its socket lies in `directory`: in a
    temporary one of its own it would stay for ever after a kill -9. No node has what multiprocessing's resource
    tracker looks after (semaphores, shared memory), so what it would be told goes nowhere: a process less."""
    resource_tracker._resource_tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # type: ignore[attr-defined]
    multiprocessing.current_process()._config["tempdir"] = str(directory)  # type: ignore[attr-defined]
    sys.modules["__main__"] = types.ModuleType("__main__")
    CONTEXT.set_forkserver_preload(["memcluster.node.zygote", "memcluster.node.process", *modules, *NEEDED])
    forkserver._forkserver.ensure_running = _still_runs  # type: ignore[method-assign]
    fork_server()


def _still_runs() -> None:
    """What multiprocessing asks for before it has a process forked: it would start a fork server in the place of a dead
    one by itself, without what ties it to this process (see node/zygote.py). Raises ConnectionResetError."""
    if _death():
        raise ConnectionResetError(errno.ECONNRESET, "the fork server has died")


def fork_server() -> int:
    """The fork server, woken if it was stopped, for it is waited for; started again if it has died, which is told: the
    next one may die of the same."""
    died = _death()
    told = {
        SUPERVISOR: str(os.getpid()),
        OUTPUT: f"/proc/{os.getpid()}/fd/{_output.fileno()}",
        # It is started by -c, which would put the working directory first on its path: a user's own socket.py there
        # would be run in the place of Python's.
        "PYTHONSAFEPATH": "1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    # What reaches the whole group, a terminal's Ctrl-C or end, the SIGTERM of timeout(1), is for this process alone.
    # A mask outlives fork and exec; what the fork server and the nodes do about it by themselves comes too late.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGCONT)  # a child of this process that has not been waited for: nobody else has the pid
    if died:
        _tell(f"{_words()}the fork server {died}; it was started again, as pid {pid}\n")
    return pid


def _death() -> str:
    """How the fork server has ended, if it has."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return ""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return ""
    return describe_exit(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)


def _words() -> str:
    """What has come from the fork server since this was last asked."""
    return _output.read().decode(errors="replace")


def _tell(text: str) -> None:
    """To the terminal, or into supervisor.out."""
    if text:
        SPEECH.say(printable_lines(text.rstrip("\n")), sys.stderr)


def helpers() -> tuple[Identity, ...]:
    """The fork server, if it lives."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    found = Identity.of(pid) if pid else None
    return () if found is None else (found,)


def reap_strangers() -> None:
    """As the first process of a container, wait for those who were left to this one: nobody else does. The fork server
    is waited for where its end is looked into."""
    own = {helper.pid for helper in helpers()}
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        for pid in map(int, children.read().split()):
            if pid not in own:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass


def stop_fork_server() -> None:
    """End the fork server and wait for it. It would go by itself when this process is gone, but `down` promises that
    nothing is left when it returns; hence the standard library's own test hook. It has nothing to do any more, and
    one that is stopped would be waited for in vain: SIGKILL."""
    for helper in helpers():
        helper.signal(signal.SIGKILL)
    _tell(_words())
    try:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    except FileNotFoundError:
        pass  # its socket went with the run directory; removing it is the last that _stop does
