"""Kubernetes as an engine, which starts nothing itself: guardians are the containers of pods, which the kubelet runs,
and again when they end. What they are told is in a Secret, and the supervisor, in a pod too, reads it there
(manifests.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from memcluster.launcher.clusterfile.settings import EngineConfig
from memcluster.launcher.hosts.engine import Ended, EngineError, Host, Letters
from memcluster.launcher.hosts.letter import VARIABLE, Letter, NoLetter, parse_letter
from memcluster.node.transport.loop import Loop


class Kubernetes:
    """See engine.Engine."""

    def __init__(self, _loop: Loop, _config: EngineConfig, _ended: Ended) -> None:
        try:
            self.letter: Letter | None = parse_letter(os.environ.get(VARIABLE, ""))
        except NoLetter:
            raise EngineError(
                "with engine: kubernetes the supervisor runs in a pod: `memcluster config --kubernetes` writes what "
                "`kubectl apply` takes"
            ) from None

    def start(self, hosts: Sequence[Host], argv: Sequence[str], letters: Letters) -> None:
        """The kubelet does."""

    def again(self, host: Host) -> None:
        """The kubelet does."""

    def stop(self) -> None:
        """There is nothing."""
