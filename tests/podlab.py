"""A lab of hosts that are pods: what `memcluster config --kubernetes` writes is carried out on them, by kubelet.py
instead of Kubernetes, which takes more than a test has.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from harness import ROOT, TIMEOUT, environment
from hostlab import Host, Lab

KUBELET = ROOT / "tests" / "kubelet.py"
IMAGE = """#!/bin/sh
PYTHONPATH={root} exec {python} -P -m memcluster "$@"
"""


class PodLab(Lab):
    """See hostlab.lab(kind=). The pod of the supervisor is where the others' links meet."""

    engine = "kubernetes"
    needs = (("setpriv", "util-linux"),)
    home = "lab-supervisor-0"
    names = ("lab-0", "lab-1")

    def start_engine(self) -> None:
        """The names that the Services give, and an image."""
        self.kubelets: dict[str, subprocess.Popen[bytes]] = {}
        lines = [f"{host.address} {host.name}.lab\n" for host in self.everyone]
        (self.folder / "hosts").write_text("".join(lines) + f"127.0.0.1 localhost\n{self.here.address} lab-nbd\n")
        (self.folder / "bin").mkdir()
        image = self.folder / "bin" / "memcluster"
        image.write_text(IMAGE.format(root=shlex.quote(str(ROOT)), python=shlex.quote(sys.executable)))
        image.chmod(0o755)
        for host in self.everyone:
            host.run("mount", "-t", "tmpfs", "tmpfs", "/var/log")
            host.run("cp", "-a", "/etc", "/run/etc")  # an /etc of its own, for folders that are mounted in it
            host.run("mount", "--bind", "/run/etc", "/etc")
            host.run("mount", "--bind", self.folder / "hosts", "/etc/hosts")

    @property
    def everyone(self) -> tuple[Host, ...]:
        return self.here, *self.hosts.values()

    def describe(self, **keys: object) -> None:
        super().describe(
            **{
                "hosts": [*self.hosts],
                "engine": "kubernetes",
                "listen": "0.0.0.0:10809",
                "insecure_network": True,
                **keys,
            }
        )

    def apply(self) -> None:
        """Have the kubelets run the pods of what is written for cluster.yaml."""
        written = super().command("config", "--kubernetes").stdout
        objects: dict[str, dict[str, str]] = {}
        pods: dict[str, dict] = {}
        for manifest in yaml.safe_load_all(written):
            name, kind = manifest["metadata"]["name"], manifest["kind"]
            if kind in ("ConfigMap", "Secret"):
                objects[name] = manifest.get("data") or manifest["stringData"]
            elif kind == "StatefulSet":
                pod = manifest["spec"]["template"]["spec"]
                pods |= {f"{name}-{ordinal}": pod for ordinal in range(manifest["spec"]["replicas"])}
        assert pods.keys() == {host.name for host in self.everyone}
        for host in self.everyone:
            folder = self.place(host)
            folder.mkdir()
            (folder / "bin").symlink_to(self.folder / "bin")
            (folder / "pod.json").write_text(json.dumps(pods[host.name]))
            (folder / "objects.json").write_text(json.dumps(objects))
        for host in self.everyone:
            self.run_pod(host)

    def run_pod(self, host: Host) -> None:
        words = host.words(*self.kubelet(host, "run"))
        self.kubelets[host.name] = subprocess.Popen(words, env=environment())

    def ask_to_end(self, host: Host) -> None:
        """Its container, as when its pod is deleted; there is another one then."""
        host.run(*self.kubelet(host, "end"))

    def delete(self) -> None:
        """All pods: asked to end, and waited for. Hosts come first: a container that begins is deaf for a moment."""
        for host in (*self.hosts.values(), self.here):
            host.run("pkill", "-TERM", "-f", f"{self.place(host)} run")
        for kubelet in self.kubelets.values():
            assert not kubelet.wait(TIMEOUT)

    def kubelet(self, host: Host, *words: str) -> list[str]:
        return [sys.executable, "-P", str(KUBELET), str(self.place(host)), *words]

    def place(self, host: Host) -> Path:
        return self.folder / host.name

    def log(self, host: Host) -> str:
        """What its container has said."""
        return (self.place(host) / "log").read_text()

    def command(self, *words: str, check: bool = True, timeout: float = TIMEOUT):
        """`kubectl exec lab-supervisor-0 -- memcluster WORDS`."""
        exec_words = self.kubelet(self.here, "exec", "memcluster", *words)
        return self.here.run(*exec_words, check=check, timeout=timeout)

    def memclient(self, *words: str, check: bool = True, timeout: float = TIMEOUT):
        """From another pod, by the Service's name."""
        command = [sys.executable, "-P", "-m", "memcluster.client.cli", "--uri", "nbd://lab-nbd:10809", *words]
        return self.here.run(*command, check=check, timeout=timeout)

    def end(self) -> None:
        super().end()
        for kubelet in self.kubelets.values():
            kubelet.wait()
