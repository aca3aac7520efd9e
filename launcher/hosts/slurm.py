"""Slurm as an engine: a job of its own for each host, of one task, which `srun` waits for.

A job a host, for a node that failed is not given back to its allocation. What srun ends with says nothing, for it
outlives the failure of its node and ends with 0 then. It is never killed, but asked to end: the job of an srun that is
killed has its node for ever. So it outlives a supervisor that is killed, until the lease has ended the guardian.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from memcluster.launcher.clusterfile.settings import EngineConfig
from memcluster.launcher.hosts.engine import Ended, EngineError, Host, Letters
from memcluster.launcher.hosts.letter import VARIABLE
from memcluster.launcher.hosts.programs import Program, Programs, shell_line
from memcluster.node.transport.loop import Loop

OPTIONS = (
    "--job-name=memcluster",
    "--nodes=1",
    "--ntasks=1",
    "--mpi=none",
    "--cpu-bind=none",  # its nodes are to have all that the job has
    "--overlap",  # inside somebody's allocation they share it with what else runs there
    "--export=ALL",  # the letter is in the environment
    "--chdir=/",
)
"""All else (an account, a time, memory, processors) is for srun's own variables to say: SLURM_ACCOUNT and its like."""


class Slurm(Programs):
    """See engine.Engine."""

    def __init__(self, loop: Loop, config: EngineConfig, ended: Ended) -> None:
        super().__init__(loop, ended)
        self._partition = [f"--partition={config.at}"] if config.at else []
        if shutil.which("srun") is None:
            raise EngineError("there is no srun here: run memcluster where jobs are submitted to Slurm")

    def start(self, hosts: Sequence[Host], argv: Sequence[str], letters: Letters) -> None:
        command = ["/bin/sh", "-c", shell_line(argv)]
        for host in hosts:
            words = ["srun", *OPTIONS, *self._partition, f"--nodelist={host.name}", "--", *command]
            self.run(host.name, Program(words, env={VARIABLE: letters(host.name)}, has_to_clean_up=True))
            self.tell(host.name, b"")
