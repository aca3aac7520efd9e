# mypyc 2.4.1: a compiled generator function is no generator function to inspect, and what it returns no generator: whoever asks before
# they call, as pytest does for fixtures that yield, takes it for a plain function. collections.abc says Generator.
# Needs a C compiler and Python's headers.
. "$(dirname "$0")/common.sh"
need cc
python_packages mypy==2.4.1 setuptools
cat >counted.py <<'PY'
from collections.abc import Iterator


def numbers() -> Iterator[int]:
    yield 1
PY
seen() {
    python -c '
import inspect
from collections.abc import Generator
import counted
made = counted.numbers()
print(inspect.isgeneratorfunction(counted.numbers), inspect.isgenerator(made), isinstance(made, Generator), next(made))'
}
expect "as Python" "True True True 1" "$(seen)"
mypyc counted.py >build.log 2>&1 || { tail -n 3 build.log; skip "it does not compile here"; }
expect "compiled" "False False True 1" "$(seen)"
