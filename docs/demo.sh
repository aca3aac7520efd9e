#!/bin/sh
# What `make demo` shows: a cluster from start to stop. The argument is the folder of the commands.
set -eu
PATH="$1:$PATH"
step() { printf '\n$ %s\n' "$*"; "$@"; }

step memcluster up -d
trap 'memcluster down >/dev/null 2>&1 || true' EXIT INT TERM

step memcluster status

# The first two shards of ./cluster.yaml meet at this offset: the text lands on both servers.
boundary=$(memclient info --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["cluster"]["servers"][1]["range"][0] - 6)')
step memclient write "$boundary" "hello, two servers"
step memclient read "$boundary" 18
echo

step memcluster logs
step memcluster down
trap - EXIT INT TERM
