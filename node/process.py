"""The life of one node: from the fork to the exit. Who it is, what ends it, and the word of its supervisor.

A node ends in three ways: told to by its supervisor, it drains and exits 0; when its supervisor is gone (end of file on
the control channel) it does the same by itself; and when the fork server, its parent, is gone, the kernel kills it
(PR_SET_PDEATHSIG), even if it hangs or is stopped. A SIGTERM is passed on to the supervisor, who has a node drain, but
in its turn if all are to go: systemd sends one to every process of a service at once.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver

from setproctitle import setproctitle

from memcluster.node.files import make_folder
from memcluster.node.node import Node
from memcluster.node.privileges import drop_capabilities
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop
from memcluster.node.zygote import end_with, open_output, raise_descriptor_limit, redirect_output


def run_node(spec: NodeSpec, listeners: Sequence[socket.socket], control: socket.socket, fork_server: int) -> None:
    """Be the node until it is time to go. The target of the process; runs in a child of the fork server, whose pid
    is given."""
    gc.freeze()
    gc.enable()
    os.setsid()  # a terminal's Ctrl-C is for the supervisor alone
    end_with(fork_server)
    # The fork server ends when nobody holds this pipe: only the supervisor is to hold it, not the nodes.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    setproctitle(f"memcluster {spec.cluster.name}: {spec.name} ({spec.role})")
    logs = os.path.dirname(spec.log_directory)
    with suppress(OSError):  # then its supervisor hears what it has to say; the memory is worth more than a log
        make_folder(logs)
        redirect_output(open_output(os.path.join(logs, f"{spec.name}.out")))
    raise_descriptor_limit()
    drop_capabilities([logs, os.path.dirname(spec.merged_log), os.path.dirname(spec.shard)])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)  # a supervisor that finds it hung asks where it stands
    loop = Loop()
    loop.on_signal(signal.SIGTERM, lambda: node.terminated())  # noqa: PLW0108 - which is not there yet
    node = Node(loop, spec, listeners, control)
    node.role.tune_process()
    node.start()
    loop.run()
    node.close()
