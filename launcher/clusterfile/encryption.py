"""What cluster.yaml says of TLS, held against the rest of it and against the files that it names: what is wrong with
certificates is better said now than by a server that cannot start, or to a client."""

from __future__ import annotations

from collections.abc import Iterator

from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.node import topology
from memcluster.node.tls.credentials import BadCredentials


def check_tls(config: ClusterConfig) -> Iterator[tuple[set[str], tuple[int | str, ...], str]]:
    """As config.py's `_check`."""
    credentials = config.tls.credentials
    if credentials is None:
        return
    if topology.load(config.topology).hands_over:
        yield {"tls", "topology"}, ("tls",), (
            f"topology {config.topology} hands its clients' sockets from server to server, where TLS cannot follow; "
            "choose primary-secondary or client-routed"
        )
    if config.tls.of_the_run:
        return
    if not credentials.certificates and not credentials.psk:
        yield {"tls"}, ("tls",), (
            "tls needs certificates, a folder (`memcluster certificates` makes one to try), or psk, a file of keys"
        )
    if credentials.certificates and credentials.psk:
        yield {"tls"}, ("tls", "psk"), (
            "tls.psk stands instead of tls.certificates: a server that has a certificate agrees with its clients on "
            "ciphers with which OpenSSL takes no shared key"
        )
        return
    from memcluster.node.tls.context import check  # late: it loads OpenSSL

    for key in ("certificates", "psk"):
        if getattr(credentials, key):
            try:
                check(credentials)
            except BadCredentials as error:
                yield {"tls"}, ("tls", key), f"tls.{key}: {error}"
