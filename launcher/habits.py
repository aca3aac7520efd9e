"""What people type who know docker compose, where memcluster has another word for it, or none."""

from __future__ import annotations

NO_IMAGES = "there are no images here: every node is this very program"
NO_COMMAND = "nothing runs in a node but the node; `memclient` reads and writes the memory"
BY_NAME = "`name:` in cluster.yaml names the cluster, -f says which file"
AS_A_WHOLE = "a cluster starts and stops as a whole"
IN_JSON = "`--json` has all of it"
UNCUT = "`--wide` shows every column"
TIMES = "each line begins with its time"
COLOURS = "a pipe, or NO_COLOR=1, has no colours"
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
    "wait": "`memcluster up` waits until the cluster is ready, `memcluster events` ends with it",
    "rm": STOPPED,
    "exec": NO_COMMAND,
    "run": NO_COMMAND,
    "cp": "`memclient copy SOURCE DESTINATION` copies",
    "export": "`memclient copy memory: FILE` writes the memory to a file",
    "volumes": "`storage:` in cluster.yaml says where the bytes are kept",
    "version": "`memcluster --version` shows it",
    "convert": "`memcluster config` shows the file with every default",
    **dict.fromkeys(("build", "pull", "push", "images", "create", "commit", "publish"), NO_IMAGES),
    **dict.fromkeys(("--build", "--pull", "--no-build", "--quiet-pull", "--quiet-build"), NO_IMAGES),
    **dict.fromkeys(("-p", "--project-name", "--profile", "--env-file", "--project-directory"), BY_NAME),
    **dict.fromkeys(("--remove-orphans", "--force-recreate", "--no-recreate", "--no-deps", "--no-start"), AS_A_WHOLE),
    **dict.fromkeys(("--no-color", "--ansi"), COLOURS),
    "--dry-run": "`memcluster config` says what would be started, `memcluster diff` what has changed",
    "memcluster -v": "`memcluster --version` shows it",
    "up --wait": "`up` always waits until the cluster is ready",
    "up -t": "`stop_timeout:` in cluster.yaml says how long a stop may take",
    "up --timeout": "`stop_timeout:` in cluster.yaml says how long a stop may take",
    "up --watch": "`memcluster watch --web` shows what happens, `memcluster status --watch` the processes",
    "up -w": "`memcluster watch --web` shows what happens, `memcluster status --watch` the processes",
    "up --attach": "`memcluster logs -f NODE` follows one",
    "up --no-attach": "`memcluster logs -f NODE` follows one",
    "up --timestamps": "`memcluster logs` has the times",
    "up --abort-on-container-exit": "a node that dies is started again: `restart:` in cluster.yaml",
    "up --exit-code-from": "a node that dies is started again: `restart:` in cluster.yaml",
    **dict.fromkeys(("up -V", "up --renew-anon-volumes"), "`storage:` in cluster.yaml says what is kept"),
    **dict.fromkeys(("down -v", "down --volumes"), STOPPED),
    "down --rmi": NO_IMAGES,
    "logs --no-log-prefix": "each line says whose it is; `--json` has the same for programs",
    **dict.fromkeys(("logs -t", "logs --timestamps"), TIMES),
    **dict.fromkeys(("config --services", "config --format"), "`memcluster config` prints YAML, with every server"),
    **dict.fromkeys(("status -a", "status --all", "ls -a", "ls --all"), "all are shown"),
    **dict.fromkeys(("status --format", "ls --format", "stats --format", "logs --format"), IN_JSON),
    **dict.fromkeys(("status --no-trunc", "stats --no-trunc"), UNCUT),
    **dict.fromkeys(("status --services", "status --filter", "ls --filter", "events --filter"), IN_JSON),
    **dict.fromkeys(("status -q", "status --quiet"), "the exit code says it: 0 running, 3 not running, 4 degraded"),
    **dict.fromkeys(("events --since", "events --until"), "`memcluster logs --since` tells of what has been"),
    "stats --no-stream": "`stats` shows them once, `stats --watch` again and again",
}  # fmt: skip
"""By verb, by flag, or by both."""
