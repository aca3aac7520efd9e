"""A lab of hosts whose engine is Slurm: its controller runs where commands are run, and one of its daemons on each of
the others. All of its files are the lab's own.
"""

from __future__ import annotations

import os
import time

from harness import TIMEOUT, run
from hostlab import Host, Lab

SLURM = """
ClusterName=lab
SlurmctldHost={here.name}({here.address})
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%h.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={host.name} NodeAddr={host.address} CPUs=2 State=UNKNOWN\n"


class SlurmLab(Lab):
    """See hostlab.lab(kind=)."""

    engine = "slurm"
    needs = (("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("srun", "slurm-wlm"), ("munged", "munge"))

    def start_engine(self) -> None:
        folder = self.folder / "slurm"
        folder.mkdir()
        everyone = (self.here, *self.hosts.values())
        nodes = "".join(NODE.format(host=host) for host in self.hosts.values())
        (folder / "slurm.conf").write_text(SLURM.format(here=self.here, folder=folder) + nodes)
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        # srun is called back at the name of its host.
        (folder / "hosts").write_text("".join(f"{host.address} {host.name}\n" for host in everyone))
        munged = f"munged --force --key-file={folder}/munge.key --seed-file=/run/munge/seed --log-file=/run/munge/log"
        for host in everyone:
            host.run("mount", "--bind", folder, "/etc/slurm")
            host.run("mount", "--bind", folder / "hosts", "/etc/hosts")
            host.run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
            host.run("mkdir", "/sys/fs/cgroup/systemd", "/run/munge", "/run/slurmctld", "/run/slurmd")
            # Without one slurmd does not start, although this configuration uses none.
            host.run("mount", "-t", "cgroup", "-o", "none,name=slurmlab", "cgroup", "/sys/fs/cgroup/systemd")
            host.run(*munged.split(), "--socket=/run/munge/munge.socket.2", "--pid-file=/run/munge/pid")
        self.start_controller()
        for host in self.hosts.values():
            self.start_daemon(host)
        idle = [b"idle"] * len(self.hosts)
        self.wait_until_slurm(lambda: self.here.run("sinfo", "-hN", "-o%T").stdout.split() == idle)

    def start_controller(self) -> None:
        self.here.run("slurmctld")

    def kill_controller(self) -> None:
        """Once it has saved what it knows, which takes it up to 5 s: it forgets jobs that are younger."""
        self.here.run("touch", "/run/killed")
        for job in self.jobs().values():
            self.here.run("scontrol", "update", f"jobid={job}", "comment=kept")
        self.wait_until_slurm(lambda: self.here.run("find", "/run/slurmctld/job_state", "-newer", "/run/killed").stdout)
        self.here.run("pkill", "-KILL", "-x", "slurmctld")

    def start_daemon(self, host: Host) -> None:
        host.run("slurmd")

    def kill_daemon(self, host: Host) -> None:
        """Those of its processes that look after a job live on."""
        host.run("pkill", "-KILL", "-x", "slurmd")

    def jobs(self) -> dict[str, str]:
        """Those that are not over, by the host that each has."""
        lines = self.here.run("squeue", "-h", "-o%N %i").stdout.decode().splitlines()
        return dict(line.split(" ") for line in lines)

    def wait_until_slurm(self, fact) -> None:
        """What Slurm says is true."""
        deadline = time.monotonic() + TIMEOUT
        while not fact():
            assert time.monotonic() < deadline, run("tail", "-n", "20", self.folder / "slurm" / "slurmctld.log").stdout
