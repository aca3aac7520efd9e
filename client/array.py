"""A stretch of the memory as an array of NumPy's kinds, read and written by slices; only who asks for one needs NumPy.

A selection is cut into runs of bytes that lie together, and all of them are in flight at the same time: straight from
the memory into the array that is returned, and from the array that is given.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from memcluster.client.memory import Memory


class Array:
    """`shape` elements of `dtype` from `offset` on, in C order. `array[3:5]` reads, `array[3:5] = …` writes, with
    numbers, slices and `...` as NumPy has them; `numpy.asarray(array)` reads all."""

    def __init__(self, memory: Memory, shape: int | Sequence[int], dtype: Any, offset: int) -> None:
        self.shape: tuple[int, ...] = (
            (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(map(operator.index, shape))
        )
        self.dtype = numpy.dtype(dtype)
        self.offset = operator.index(offset)
        if self.dtype.hasobject:
            raise TypeError(f"elements of {self.dtype} are not bytes: a memory cannot hold them")
        if self.offset < 0 or any(length < 0 for length in self.shape):
            raise ValueError(f"shape {self.shape} at offset {self.offset}: nothing may be negative")
        if self.offset + self.nbytes > memory.size:
            raise IndexError(
                f"{self.nbytes} bytes (shape {self.shape} of {self.dtype}) at offset {self.offset} go beyond the "
                f"memory of {memory.size} bytes"
            )
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Array {self.shape} of {self.dtype} at {self.offset} of {self._memory!r}>"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * int(self.dtype.itemsize)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        chosen, shape = self._chosen(key)
        found = numpy.empty(shape, self.dtype)
        flat = _flat(found)
        futures = [
            self._memory.start_readinto(flat[at : at + length], offset) for at, offset, length in self._runs(chosen)
        ]
        for future in futures:
            future.result()
        return found[()]

    def __setitem__(self, key: Any, value: Any) -> None:
        chosen, shape = self._chosen(key)
        given = numpy.broadcast_to(numpy.asarray(value, self.dtype), shape)
        flat = _flat(numpy.ascontiguousarray(given))
        futures = [
            self._memory.start_pwrite(flat[at : at + length], offset) for at, offset, length in self._runs(chosen)
        ]
        for future in futures:
            future.result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("what lies in a cluster's memory is always a copy here")
        found = numpy.asarray(self[...])
        return found if dtype is None else found.astype(dtype, copy=False)

    def _chosen(self, key: Any) -> tuple[list[range], tuple[int, ...]]:
        """The indexes of each dimension, and the shape of the outcome. Raises IndexError, TypeError."""
        parts = list(key) if isinstance(key, tuple) else [key]
        if sum(part is Ellipsis for part in parts) > 1:
            raise IndexError("more than one ... in an index")
        if (missing := self.ndim - sum(part is not Ellipsis for part in parts)) < 0:
            raise IndexError(f"{len(parts)} indexes for {self.ndim} dimensions")
        where = next((place for place, part in enumerate(parts) if part is Ellipsis), len(parts))
        parts[where : where + 1] = [slice(None)] * missing
        chosen, shape = [], []
        for axis, (part, length) in enumerate(zip(parts, self.shape, strict=True)):
            if isinstance(part, slice):
                chosen.append(range(length)[part])
                shape.append(len(chosen[-1]))
                continue
            try:
                index = operator.index(part)
            except TypeError:
                raise TypeError(
                    f"an array of a memory is indexed by numbers, slices and ..., not by a {type(part).__name__}: "
                    "read the part that has it, and index that"
                ) from None
            if not -length <= index < length:
                raise IndexError(f"index {index} of dimension {axis} is beyond its {length}")
            chosen.append(range(index % length, index % length + 1))
        return chosen, tuple(shape)

    def _runs(self, chosen: Sequence[range]) -> Iterator[tuple[int, int, int]]:
        """(bytes into the outcome, offset in the memory, length) of what lies together."""
        strides = [math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize for axis in range(self.ndim)]
        if not all(chosen) or not self.dtype.itemsize:
            return
        inner = self.ndim  # from this dimension on all is chosen, or one stretch of the first of them
        while inner and (len(chosen[inner - 1]) == 1 or chosen[inner - 1].step == 1):
            inner -= 1
            if len(chosen[inner]) != self.shape[inner]:
                break
        length = math.prod(map(len, chosen[inner:])) * self.dtype.itemsize
        begin = self.offset + sum(
            part[0] * stride for part, stride in zip(chosen[inner:], strides[inner:], strict=True)
        )
        for at, outer in enumerate(itertools.product(*chosen[:inner])):
            yield at * length, begin + sum(map(operator.mul, outer, strides)), length


def _flat(array: Any) -> Any:
    """The bytes of a contiguous array, which is not copied."""
    return memoryview(array.reshape(-1).view(numpy.uint8)) if array.nbytes else memoryview(bytearray())
