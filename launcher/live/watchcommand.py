"""`memcluster watch --web`: where the live page is served, and to whom."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from memcluster.client.console import EXIT_IN_USE, Failure
from memcluster.client.stdio import system_words
from memcluster.launcher.checked import running
from memcluster.launcher.reach import beyond, is_wildcard
from memcluster.node.transport.address import Address

ANYWHERE = "127.0.0.1:0"
"""Where the page is served if nobody says where: the system chooses the port."""


def _address(text: str) -> Address:
    """`HOST:PORT`, or a port of this machine."""
    try:
        found = Address.parse(f"127.0.0.1:{text}" if text.isdecimal() else text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if found.path:
        raise click.BadParameter(f"{text!r}: no browser opens a unix socket; write HOST:PORT")
    return found


@click.command()
@click.option("--web", "address", metavar="[ADDRESS]", is_flag=False, flag_value=ANYWHERE, type=_address,
              help="Serve the page at HOST:PORT. [default: a port of 127.0.0.1 that the system chooses]")  # fmt: skip
@click.option("--insecure-network", is_flag=True, help="Allow an ADDRESS that other machines reach: unencrypted.")
@click.pass_obj
def watch(file: Path, address: Address | None, insecure_network: bool) -> None:
    """Show the cluster as a live page: requests in slow motion, states, and faults that are set by a click.

    It prints the page's address. Who knows that address, with its token, may look and break things. Ctrl-C ends it.
    """
    if address is None:
        raise click.UsageError("say --web for the page; `status --watch` and `logs -f` are for the terminal")
    running(file)
    if (others := beyond(address)) and not insecure_network:
        raise click.UsageError(
            f"{address} can be reached by other machines ({others[0]}), and the page is not encrypted: name an address "
            "of this machine alone, such as 127.0.0.1:8080, or add --insecure-network"
        )
    import secrets

    try:
        from memcluster.launcher.live.site import serve
    except ImportError as error:
        raise Failure(f"the page needs {error.name}: pip install 'memcluster[web]' has it") from None
    with _listen(address) as listener:
        port = listener.getsockname()[1]
        host = "127.0.0.1" if is_wildcard(address) else address.host
        token = secrets.token_urlsafe(24)
        shown = Address(host=host, port=port)
        click.echo(f"watch it at  http://{shown}/?token={token}\nto end it    Ctrl-C")
        serve(file, listener, token, host)


def _listen(address: Address) -> socket.socket:
    """Raises Failure."""
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address.sockaddr)
        listener.listen()
    except OSError as error:
        listener.close()
        raise Failure(f"the page cannot be served at {address}: {system_words(error)}", EXIT_IN_USE) from error
    return listener
