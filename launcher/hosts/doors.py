"""By what servers on other hosts let clients in over TLS: the files of cluster.yaml's `tls`, or those that are made for
the run where it names none. A server's files go to every host; a client's stay where the cluster was started.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcluster.launcher.certificates import for_clients
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.hosts.letter import KEYS
from memcluster.node import topology
from memcluster.node.tls.credentials import CA, SERVER_CERTIFICATE, SERVER_KEY


def door_files(config: ClusterConfig, addresses: Sequence[str]) -> dict[str, str]:
    """The files that every host needs, by name; none where no client comes there, or without TLS. The hosts are at
    these addresses. Raises Failure, OSError."""
    tls = config.tls
    if tls.mode == "off" or not topology.load(config.topology).every_server_is_a_door:
        return {}
    if tls.psk is not None:
        return {KEYS: tls.psk.read_text()}
    folder = tls.certificates
    assert folder is not None
    if tls.of_the_run:
        own = [config.advertise] if config.advertise else []
        own += [server.listen.host for server in config.servers if server.listen.host]
        for_clients(folder, [*addresses, *own])
    names = [SERVER_CERTIFICATE, SERVER_KEY, *([CA] if tls.verify else [])]
    return {name: (folder / name).read_text() for name in names}
