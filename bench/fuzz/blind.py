"""Inputs by chance from one seed: seeds with something wrong with them. It knows nothing of what they reach, and needs
nothing that is not there: CI runs some thousand of them, the same each time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from bench.fuzz.target import MOST, Target

NUMBERS = (0, 1, 7, 28, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1)


def inputs(target: Target, count: int, seed: int) -> Iterator[bytes]:
    """So many: the target's seeds, then others made of them."""
    rng = random.Random(seed)
    yield from target.seeds[:count]
    for _ in range(count - len(target.seeds)):
        yield mutated(rng, target)


def mutated(rng: random.Random, target: Target) -> bytes:
    data = bytearray(rng.choice(target.seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 28, 100))
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = rng.randbytes(size)
            case 4:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:size]
            case 5 if target.words:
                word = rng.choice(target.words)
                data[at : at + rng.choice((0, len(word)))] = word
            case 6:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) & (1 << 8 * width) - 1
                data[at : at + width] = number.to_bytes(width, rng.choice(("big", "little")))
            case _:
                other = rng.choice(target.seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:MOST])
