"""The cases over TLS: both servers with the same certificates, and fio's nbd engine as the client of both.

fio gives libnbd nothing but the URI, and libnbd takes no file that a URI names unless its program says so. What it
looks for by itself is a folder in the home of a user who is not root: so fio has such a home, and is such a user.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench.cluster import cluster
from bench.fio import Figures, Load, measure
from bench.pairs import Measure, Plan, Prepare
from bench.peers import MEMORY
from bench.processes import Service, activated, fill, need
from memcluster.client.uri import Security, parse_uri
from memcluster.launcher.certificates import make
from memcluster.node.tls.credentials import CA

NOBODY = 65534


def loads(load: Load, figure: Callable[[Figures], float]) -> Prepare:
    """memcluster and nbdkit --tls=require under a load, each a server alone."""

    @contextmanager
    def prepare(plan: Plan) -> Iterator[list[Measure]]:
        with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as home, ExitStack() as stack:
            certificates = _home(Path(home))
            tls = {"certificates": str(certificates), "verify": False}  # nbdkit asks for none by default
            sides = [stack.enter_context(cluster(tls=tls)), stack.enter_context(_nbdkit(certificates))]
            prefix = _prefix(home)
            uris = [str(replace(parse_uri(side.uri), tls=Security())) for side in sides]
            yield [lambda uri=uri: figure(measure(uri, load, plan.runtime, prefix)) for uri in uris]  # type: ignore[misc]

    return prepare


def _home(folder: Path) -> Path:
    """Certificates in it, and the authority's where libnbd looks for it."""
    folder.chmod(0o755)
    certificates, trusted = folder / "certificates", folder / ".pki" / "libnbd"
    make(certificates)
    trusted.mkdir(parents=True)
    shutil.copy(certificates / CA, trusted)
    return certificates


def _prefix(home: str) -> list[str]:
    """Before fio: its home, and a user who may not be root."""
    user = [need("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
    return ["env", f"HOME={home}", *user]


@contextmanager
def _nbdkit(certificates: Path) -> Iterator[Service]:
    words = "--tls=require", f"--tls-certificates={certificates}"
    with activated("nbdkit", "--foreground", "--exit-with-parent", *words, "memory", str(MEMORY)) as service:
        secured = Service(str(replace(parse_uri(service.uri), tls=Security(str(certificates)))), service.pid)
        fill(secured, MEMORY)
        yield secured
