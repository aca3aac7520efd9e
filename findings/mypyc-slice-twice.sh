# mypyc 2.4.1: where what is sliced is no list, tuple, str or bytes, and the slice has no step, the expressions of its bounds are
# evaluated twice: buffer[: take()] takes twice, and the first take is lost without a word. With a step, or as the target of an
# assignment or a del, or with a list, they are evaluated once.
# Needs a C compiler and Python's headers.
. "$(dirname "$0")/common.sh"
need cc
python_packages mypy==2.4.1 setuptools
cat >slices.py <<'PY'
from collections.abc import Callable

Take = Callable[[], int]


def end(buffer: memoryview, take: Take) -> memoryview:
    return buffer[: take()]


def begin(buffer: memoryview, take: Take) -> memoryview:
    return buffer[take() :]


def step(buffer: memoryview, take: Take) -> memoryview:
    return buffer[: take() : 1]


def deleted(buffer: bytearray, take: Take) -> None:
    del buffer[: take()]


def plain(buffer: bytes, take: Take) -> bytes:
    return buffer[: take()]
PY
cat >counted.py <<'PY'
import slices

for function, buffer in (
    (slices.end, memoryview(b"1234")),
    (slices.begin, memoryview(b"1234")),
    (slices.step, memoryview(b"1234")),
    (slices.deleted, bytearray(b"1234")),
    (slices.plain, b"1234"),
):
    taken = []
    function(buffer, lambda: taken.append(1) or 1)
    print(len(taken), end=" ")
PY
expect "as Python" "1 1 1 1 1 " "$(python counted.py)"
mypyc slices.py >build.log 2>&1 || { tail -n 3 build.log; skip "it does not compile here"; }
expect "compiled" "2 2 1 1 1 " "$(python counted.py)"
