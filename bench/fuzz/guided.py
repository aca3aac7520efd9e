"""One target under atheris, libFuzzer for Python: inputs that reach something new are kept, and others made of them.

This is the program of a process of its own, `python -m bench.fuzz.guided TARGET FOLDER RUNS SEED`: libFuzzer
ends the process that it runs in. What it counts it says on stderr; see engine.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["memcluster"]):
    from bench.fuzz.targets import TARGETS
from bench.fuzz.target import MOST

LONGEST_RUN = 20
"""Seconds that one input may take."""
MOST_MEMORY = 1024
"""MiB of the process, at most."""


def main() -> None:
    name, folder, runs, seed = sys.argv[1:]
    target, home = TARGETS[name], Path(folder)
    corpus = home / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number:03d}").write_bytes(data)
    words = home / "words"
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in target.words))
    options = {
        "runs": runs, "seed": seed, "max_len": MOST, "timeout": LONGEST_RUN,
        "rss_limit_mb": MOST_MEMORY, "dict": words, "artifact_prefix": f"{home}/", "print_final_stats": 1,
        "reload": 0,
    }  # fmt: skip
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
