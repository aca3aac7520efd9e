# mypyc 2.4.1: a compiled class without an __init__ of its own, whose base class has one and may have interpreted subclasses
# (allow_interpreted_subclasses), runs that __init__ twice when code that is not compiled makes one: what it opens is opened twice, what
# it counts is counted twice. With an __init__ that does no more than call the base's, or with the class open like its base, it runs once.
# Needs a C compiler and Python's headers.
. "$(dirname "$0")/common.sh"
need cc
python_packages mypy==2.4.1 setuptools
cat >classes.py <<'PY'
from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class Base:
    def __init__(self, name: str) -> None:
        print(name, end=" ")


class Bare(Base):
    pass


class Calling(Base):
    def __init__(self, name: str) -> None:
        super().__init__(name)


@mypyc_attr(allow_interpreted_subclasses=True)
class Open(Base):
    pass
PY
seen() { python -c 'import classes; classes.Base("base"); classes.Bare("bare"); classes.Calling("calling"); classes.Open("open")'; }
expect "as Python" "base bare calling open " "$(seen)"
mypyc classes.py >build.log 2>&1 || { tail -n 3 build.log; skip "it does not compile here"; }
expect "compiled" "base bare bare calling open " "$(seen)"
