#!/bin/sh
# The suite with the least version of every package that pyproject.toml allows; `make test` has the newest of each. It is not
# part of CI.
#
#   make test-least                      # PYTHON=python3.11 chooses another interpreter, ARGS="-k cli" goes to pytest
set -eu
cd "$(dirname "$0")/.."
folder=build/least

rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" - >"$folder/versions" <<'PY'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for wanted in (project["dependencies"], *project["optional-dependencies"].values()):
    for each in wanted:
        if ">=" in each:
            print(each.replace(">=", "=="))
PY
"$folder/bin/pip" install --quiet --disable-pip-version-check --constraint "$folder/versions" --editable '.[test]' \
    --config-settings editable_mode=compat
status=0
"$folder/bin/python" -m pytest -n 2 "$@" || status=$?
"$folder/bin/python" -VV
cat "$folder/versions"
exit "$status"
