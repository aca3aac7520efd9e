"""Connecting to every server of a map at once, of which some may be away."""

from __future__ import annotations

from dataclasses import replace

from memcluster.client.cluster_map import ClusterMap
from memcluster.client.connection import Connection
from memcluster.client.errors import ConnectionProblem, Refused, Timeout
from memcluster.client.handshake import PATIENCE, opening
from memcluster.client.system import Errand, Steps, System, united
from memcluster.node.nbd.wire import Rep


def connecting(system: System, found: ClusterMap, timeout: float) -> Steps[list[Connection | None]]:
    """Connections to the servers of a map, to all at once. Those that do not answer within PATIENCE, when others
    have, are lost: they are tried again when something is asked of them. Raises ClusterError if nobody answers, or
    if one refuses."""
    begun = system.monotonic()
    made = [
        Connection(replace(target, export=found.export), timeout=timeout, reconnect=False, routed=True, system=system)
        if size
        else None
        for target, size in zip(found.servers, found.layout.sizes, strict=True)
    ]
    parts = [connection for connection in made if connection is not None]
    under_way = {connection: Errand(opening(system, connection.target, timeout)) for connection in parts}
    problem: ConnectionProblem | None = None
    done = False
    try:
        while under_way:
            for connection, errand in list(under_way.items()):
                try:
                    if not errand.step():
                        continue
                    connection.come_back(errand.result)
                except ConnectionProblem as error:
                    if isinstance(error, Refused) and error.reply != Rep.ERR_SHUTDOWN:
                        raise
                    problem = error
                del under_way[connection]
            nobody = all(connection.lost for connection in parts)
            until = begun + (timeout if nobody else min(PATIENCE, timeout))
            if system.monotonic() >= until:
                break
            descriptors, due = united([errand.interest for errand in under_way.values()])
            if under_way:
                yield descriptors, min(due, until)
        if all(connection.lost for connection in parts):
            raise problem or Timeout(parts[0].target, "end of the handshake", timeout)
        done = True
        return made
    finally:
        for errand in under_way.values():
            errand.close()
        for connection in () if done else parts:
            connection.close()
