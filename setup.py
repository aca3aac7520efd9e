"""What setuptools cannot read from pyproject.toml: the compiled form of the data path, by mypyc, from the same source,
and of the simulator that the data path runs in.

With MEMCLUSTER_COMPILE=1 in the environment a build compiles MODULES, and needs a C compiler; mypy it fetches by
itself. Without it nothing is compiled, and the wheel is for every Python and machine. This file is the build's
backend, too: setuptools' own, which in that case asks for mypy.
"""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import Extension, setup
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_ext import build_ext

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

COMPILER = ["mypy~=2.4"]
MODULES = {
    "node": [
        "layout",
        *(f"nbd/{name}" for name in ("client", "opening", "replies", "server")),
        *(f"transport/{name}" for name in ("loop", "stream", "traffic")),
        *(f"log/{name}" for name in ("record", "writer")),
        *(f"serving/{name}" for name in ("budget", "connection", "door", "keeper", "memory")),
        *(f"serving/{name}" for name in ("server", "service", "waiting")),
        *(f"forwarding/{name}" for name in ("fanout", "link", "staging", "window")),
        *(f"handover/{name}" for name in ("answering", "gates", "messages", "part", "passage", "taking")),
        *(f"topologies/{name}" for name in ("chain", "client_routed", "dispatcher", "primary_secondary")),
    ],
    "simulator": [
        *("client", "clock", "descriptions", "history", "process", "rules", "sockets", "streams", "system", "world"),
    ],
}
"""The way of a request through a server, and what is around it in a simulated world: a library for each, within which
calls are calls in C. See memcluster.node.native. What is not on that way stays as it is: a handshake is no faster for
it, and what a topology of one's own derives from is open to a class that is not compiled."""
SMALL = ["-fvisibility=hidden", "-fno-asynchronous-unwind-tables"]
"""For gcc and clang: calls within the library go straight to what is called, and no tables are kept for C++."""
STRIPPED = ["-Wl,-s"]


def compiles() -> bool:
    """Whether the compiled form is asked for."""
    return os.environ.get("MEMCLUSTER_COMPILE", "0") not in ("", "0")


class Compile(build_ext):
    """Compiles when it comes to that, and not where only the package's metadata is asked for."""

    def run(self) -> None:
        from mypyc.build import mypycify

        # Types are checked by `make lint`, with what the other modules need; here those count as unknown.
        options = ["--config-file=", "--explicit-package-bases", "--ignore-missing-imports"]
        libraries = [
            ([f"memcluster/{package}/{name}.py" for name in names], f"memcluster.{package}.compiled")
            for package, names in MODULES.items()
        ]
        paths = [path for sources, _ in libraries for path in sources]
        with TemporaryDirectory() as cache:  # several libraries are made by way of a cache, which must be a new one
            modules = mypycify(
                [*options, f"--cache-dir={cache}", *paths], separate=libraries, debug_level="0", opt_level="2"
            )
        for module in modules:
            module.extra_compile_args = [*module.extra_compile_args, *SMALL]  # not in place: they share it
            module.extra_link_args = [*module.extra_link_args, *STRIPPED]
        self.distribution.ext_modules = modules
        told = self.inplace, self.editable_mode
        self.initialize_options()  # it can take note of extensions only once, and began with none
        self.inplace, self.editable_mode = told
        self.parallel = True  # a compiler on each processor: two libraries take all the time
        self.finalize_options()
        super().run()


def get_requires_for_build_wheel(_settings: Any = None) -> list[str]:
    """What a wheel needs to be built."""
    return COMPILER if compiles() else []


get_requires_for_build_editable = get_requires_for_build_wheel
"""In an editable install what is compiled stands in the checkout, beside its source."""

if __name__ == "__main__":
    if compiles():
        setup(cmdclass={"build_ext": Compile}, ext_modules=[Extension("memcluster.node.compiled", [])])
    else:
        setup()
