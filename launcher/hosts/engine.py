"""What starts a guardian on a host: a thing that people already run. It knows nothing of what a guardian does.

An engine runs a command on a host, and runs it again when it is asked to. It says when it believes that the command has
ended, which decides nothing by itself: only a guardian's own word does (host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memcluster.launcher.clusterfile.settings import EngineConfig
from memcluster.launcher.hosts.letter import Letter
from memcluster.node.transport.loop import Loop


@dataclass(frozen=True)
class Host:
    """`name` is the engine's word for it, `address` where it is reached if that is not to be found by the name."""

    name: str
    address: str = ""


Ended = Callable[[str, str], None]
"""Is told the name of a host, and how the command there has ended, in words."""
Letters = Callable[[str], str]
"""What is told to the command on the host of this name. The first one takes a while to be written."""


class Engine(Protocol):
    """Runs one command a host."""

    letter: Letter | None
    """What guardians have been told by somebody else, who also runs them; None where this engine does both."""

    def start(self, hosts: Sequence[Host], argv: Sequence[str], letters: Letters) -> None:
        """Run `argv` on each, with its letter in its environment (letter.VARIABLE) or as a line on its standard input.
        Whoever can begin without a letter does so before the first is asked for."""

    def again(self, host: Host) -> None:
        """Run there again what was started, whether or not the last one has ended."""

    def stop(self) -> None:
        """Nothing is to be run any more. Commands that still run end by themselves."""


def make(loop: Loop, config: EngineConfig, ended: Ended) -> Engine:
    """The engine that cluster.yaml names. Raises EngineError."""
    from memcluster.launcher.hosts.kubernetes import Kubernetes
    from memcluster.launcher.hosts.ray import Ray
    from memcluster.launcher.hosts.slurm import Slurm
    from memcluster.launcher.hosts.ssh import SSH

    kinds: dict[str, Callable[[Loop, EngineConfig, Ended], Engine]] = {
        "ssh": SSH,
        "slurm": Slurm,
        "ray": Ray,
        "kubernetes": Kubernetes,
    }
    return kinds[config.name](loop, config, ended)


class EngineError(Exception):
    """The engine is not to be had here; says why."""
