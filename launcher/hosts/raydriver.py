"""The driver of Ray's that runs guardians: `python -m memcluster.launcher.hosts.raydriver [ADDRESS]`, a process of its
own, so that nothing else of memcluster loads Ray.

A line of JSON on its standard input names a host, and the command and environment to run there; one on its standard
output says that a command has ended, and how. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from threading import Lock, Thread
from typing import Any


def run(words: Sequence[str], env: Mapping[str, str]) -> str:
    """On the host, in a worker of Ray's; says how the command has ended. Needs nothing of memcluster there."""
    import os
    import subprocess

    done = subprocess.run(
        words,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        start_new_session=True,
    )
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return f"ended with status {done.returncode}" + (f": {said[-1]}" if said else "")


def first_line(error: Exception) -> str:
    """What Ray says is wrong, without its advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main() -> None:
    """See the top of this file."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(address=sys.argv[1] if sys.argv[1:] else "auto", log_to_driver=False, logging_level="error")
    except Exception as error:  # of many kinds, and of many lines
        print(f"Ray: {first_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)
    remote = ray.remote(num_cpus=0, max_retries=0)(run)
    lock = Lock()

    def node(host: str) -> str:
        for each in ray.nodes():
            if each["Alive"] and host in (each["NodeManagerHostname"], each["NodeManagerAddress"]):
                return str(each["NodeID"])
        raise LookupError(f"Ray has no node {host} that is alive")

    def follow(order: dict[str, Any]) -> None:
        try:
            there = NodeAffinitySchedulingStrategy(node(order["at"]), soft=False)
            how = ray.get(remote.options(scheduling_strategy=there).remote(order["words"], order["env"]))
        except Exception as error:  # whatever it is, the command is not known to run
            how = f"Ray: {first_line(error)}"
        with lock:
            answers.write(json.dumps({"host": order["host"], "ended": how}) + "\n")

    for line in sys.stdin:
        Thread(target=follow, args=(json.loads(line),), daemon=True).start()
    os._exit(0)  # Ray's own farewell may wait for a head that is dead


if __name__ == "__main__":
    main()
