"""ssh as an engine: one client of it a host, which lasts as long as the command there. No engine in its own right, for
it knows nothing of a host's death; but what everybody has.

It asks nobody for a password, and goes by the user's own configuration: keys, ports, users and jump hosts are there.
The letter goes on its standard input, and so is written while it shakes hands.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from memcluster.launcher.clusterfile.settings import EngineConfig
from memcluster.launcher.hosts.engine import Ended, EngineError, Host, Letters
from memcluster.launcher.hosts.programs import Program, Programs, shell_line
from memcluster.node.transport.loop import Loop

OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")


class SSH(Programs):
    """See engine.Engine."""

    def __init__(self, loop: Loop, _config: EngineConfig, ended: Ended) -> None:
        super().__init__(loop, ended)
        if shutil.which("ssh") is None:
            raise EngineError("there is no ssh here: install an OpenSSH client")

    def start(self, hosts: Sequence[Host], argv: Sequence[str], letters: Letters) -> None:
        options = [f"-o{option}" for option in OPTIONS]
        for host in hosts:
            address = [f"-oHostName={host.address}"] if host.address else []
            self.run(host.name, Program(["ssh", "-T", *options, *address, "--", host.name, shell_line(argv)]))
        for host in hosts:
            self.tell(host.name, f"{letters(host.name)}\n".encode())
