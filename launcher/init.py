"""`memcluster init`: a cluster.yaml to begin with, of the choices that people make first."""

from __future__ import annotations

from pathlib import Path

from memcluster.client.console import Failure
from memcluster.launcher.checked import load

TEMPLATE = """\
# A cluster for `memcluster up`. docs/configuration.md has every key; `memcluster config` shows what the others are.
memory: {memory}
servers: {servers}
topology: {topology}
listen: {listen}
storage: {storage}{remark}
"""
IN_MEMORY = "    # or a directory, which outlives `memcluster down`"


def write(file: Path, *, memory: str, servers: int, topology: str, listen: str, storage: str) -> None:
    """Write `file`, checked as `up` checks it. Raises Failure, and then nothing is left. No file is overwritten."""
    import yaml

    def written(value: str) -> str:
        return yaml.safe_dump(value, allow_unicode=True, width=10_000).removesuffix("\n").removesuffix("\n...")

    text = TEMPLATE.format(
        memory=written(memory),
        servers=servers,
        topology=topology,
        listen=written(listen),
        storage=written(storage),
        remark=IN_MEMORY if storage == "memory" else "",
    )
    try:
        with open(file, "x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise Failure(f"{file} is there already: change it, or remove it first") from None
    try:
        load(file)
    except BaseException:
        file.unlink()
        raise
