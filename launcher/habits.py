"""What people type who know docker compose, where memcluster has another word for it, or none."""

from __future__ import annotations

NO_IMAGES = "there are no images here: every node is this very program"
NO_COMMAND = "nothing runs in a node but the node; `memclient` reads and writes the memory"
BY_NAME = "`name:` in cluster.yaml names the cluster, -f says which file"
STOPPED = "`down` removes all there is but logs, and what `storage:` keeps"

HINTS = {
    "ps": "`memcluster status` shows the processes, `memcluster ls` the clusters",
    "top": "`memcluster status --watch` shows them again every second, `memcluster stats` counts requests",
    "port": "`memcluster status` shows every address, `memclient info` the URI",
    "kill": "`memcluster fault kill NODE` does it once, `memcluster down --timeout 0s` to all",
    "pause": "`memcluster fault pause NODE` does it",
    "unpause": "`memcluster fault resume NODE` does it",
    "scale": "`memcluster up --scale servers=5` starts so many",
    "attach": "`memcluster logs -f` follows what happens",
    "wait": "`memcluster up` waits until the cluster is ready",
    "rm": STOPPED,
    "exec": NO_COMMAND,
    "run": NO_COMMAND,
    "cp": "`memclient copy SOURCE DESTINATION` copies",
    "version": "`memcluster --version` shows it",
    "convert": "`memcluster config` shows the file with every default",
    **dict.fromkeys(("build", "pull", "push", "images", "create", "commit", "publish"), NO_IMAGES),
    **dict.fromkeys(("--build", "--pull", "--no-build", "--quiet-pull"), NO_IMAGES),
    **dict.fromkeys(("-p", "--project-name"), BY_NAME),
    **dict.fromkeys(("--profile", "--env-file", "--project-directory"), BY_NAME),
    **dict.fromkeys(("--remove-orphans", "--force-recreate", "--no-deps"), "a cluster starts and stops as a whole"),
    "up --wait": "`up` always waits until the cluster is ready",
    "up -t": "`stop_timeout:` in cluster.yaml says how long a stop may take",
    "down -v": STOPPED,
    "down --volumes": STOPPED,
    "down --rmi": NO_IMAGES,
    "down -t": "`--timeout 10s` says how long",
    "logs --no-color": "a pipe, or NO_COLOR=1, has no colours",
    "logs -t": "each line begins with its time",
    "logs --timestamps": "each line begins with its time",
    "status -a": "all are shown",
    "status --format": "`--json` has all of it",
    "status -q": "the exit code says it: 0 running, 3 not running, 4 degraded",
}  # fmt: skip
"""By verb, by flag, or by both."""
