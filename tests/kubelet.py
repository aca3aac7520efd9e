"""As much of a kubelet as a pod of ours takes, in the namespaces of one of the lab's hosts:

    kubelet.py FOLDER run         makes the pod's volumes and runs its container, again when it ends, until a SIGTERM
    kubelet.py FOLDER end         asks the container to end
    kubelet.py FOLDER exec WORDS  runs a command in the container, as `kubectl exec` does

FOLDER has pod.json, the pod of a manifest; objects.json, the data of ConfigMaps and Secrets by their names; and bin/,
which stands for the image.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BACK_OFF = 0.5
"""Seconds; a real one begins with none, and goes on to five minutes."""


class Pod:
    """What is in FOLDER."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = json.loads((folder / "pod.json").read_text())
        self.objects = json.loads((folder / "objects.json").read_text())
        [self.container] = self.spec["containers"]
        self.file = folder / "container"  # the process that waits for it

    @property
    def env(self) -> dict[str, str]:
        """All that the container has, and what an image has."""
        found = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": "/"}
        for variable in self.container["env"]:
            source = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = self.objects[source["name"]][source["key"]]
        return found

    @property
    def account(self) -> list[str]:
        """What takes from a command of root's what the container has not. It stays root's, for the code of the checkout
        may be root's alone; but a volume is not its own, as with a user of the container's."""
        assert self.spec["securityContext"]["runAsNonRoot"]
        own = self.container["securityContext"]
        assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

    def mount(self) -> None:
        """Its volumes, where the container has them."""
        places = {mount["name"]: mount for mount in self.container["volumeMounts"]}
        for volume in self.spec["volumes"]:
            place = places.pop(volume["name"])
            Path(place["mountPath"]).mkdir(exist_ok=True)
            options = "mode=2777,uid=65534"
            match volume:
                case {"emptyDir": {"medium": "Memory", "sizeLimit": limit}}:
                    options += f",size={limit.removesuffix('Mi')}m"
                case {"configMap": {"name": name}} | {"secret": {"secretName": name}}:
                    assert place["readOnly"]
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place["mountPath"]], check=True)
            if "emptyDir" not in volume:
                for key, text in self.objects[name].items():
                    (Path(place["mountPath"]) / key).write_text(text)
                subprocess.run(["mount", "-o", "remount,ro", place["mountPath"]], check=True)
        assert not places

    def run(self) -> None:
        """Until it is deleted."""
        self.mount()
        words = [*self.container["command"], *self.container["args"]]
        deleted: list[int] = []
        signal.signal(signal.SIGTERM, lambda signum, _: deleted.append(signum))
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        while not deleted:
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    [*apart, *self.account, *words],
                    env=self.env,
                    cwd=self.container["workingDir"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            new = self.file.with_suffix(".new")
            new.write_text(str(process.pid))
            new.rename(self.file)
            while process.poll() is None:
                if deleted and (first := self.first()):
                    os.kill(first, signal.SIGTERM)
                    try:
                        process.wait(self.spec["terminationGracePeriodSeconds"])
                    except subprocess.TimeoutExpired:
                        process.kill()  # and with it the container
                time.sleep(0.05)
            time.sleep(BACK_OFF)

    def first(self) -> int:
        """The first process of the container, as it is called outside; 0 if it has none."""
        pid = self.file.read_text()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return 0
        return int(children[0]) if children else 0

    def execute(self, words: list[str]) -> None:
        """Becomes the command."""
        first = self.first()
        if not first:
            sys.exit("the container does not run")
        enter = ["nsenter", f"--target={first}", "--pid", "--mount"]
        there = ["sh", "-c", 'cd "$0" && exec "$@"', self.container["workingDir"]]
        command = [*enter, *self.account, *there, *words]
        os.execvpe(command[0], command, self.env)


if __name__ == "__main__":
    pod = Pod(Path(sys.argv[1]))
    match sys.argv[2:]:
        case ["run"]:
            pod.run()
        case ["end"]:
            os.kill(pod.first(), signal.SIGTERM)
        case ["exec", *words]:
            pod.execute(words)
