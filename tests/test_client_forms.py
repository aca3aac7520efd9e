"""The memory in the forms that other libraries take, and what is said to who misuses it."""

from __future__ import annotations

import array
import copy
import errno
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import zipfile

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memcluster

SIZE = 4 << 20


@pytest.fixture(scope="module", params=["primary-secondary", "client-routed"])
def cluster(request):
    with memcluster.Cluster(servers=2, topology=request.param, memory=SIZE) as cluster:
        yield cluster


@pytest.fixture
def memory(cluster):
    with cluster.connect() as memory:
        memory.trim(SIZE, 0)
        yield memory


# -- a file ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_written_and_sought(memory):
    """As any raw file, within its stretch; its end is an end of file for who reads, ENOSPC for who writes."""
    memory[0:10] = b"..........."[:10]
    with memory.open(2, 6) as file:
        assert (file.read(2), file.tell(), file.seek(-1, os.SEEK_END)) == (b"..", 2, 5)
        assert file.write(b"xyz") == 1
        assert (file.read(9), file.readinto(bytearray(1))) == (b"", 0)
        with pytest.raises(OSError, match="has 6 bytes and cannot grow") as full:
            file.write(b"y")
        assert full.value.errno == errno.ENOSPC
        assert file.seek(100) == 100
        assert file.read() == b""
        with pytest.raises(io.UnsupportedOperation):
            file.truncate(3)
        with pytest.raises(ValueError, match="negative position"):
            file.seek(-1)
    assert memory[0:10] == b".......x.."
    with pytest.raises(ValueError, match="closed file"):
        file.read(1)
    for offset, length in ((SIZE, 1), (0, SIZE + 1)):
        with pytest.raises(IndexError):
            memory.open(offset, length)
    assert len(memory.open(SIZE - 3).readall()) == 3


def test_files_are_taken_by_the_standard_library_and_numpy(memory):
    """zipfile, copyfileobj, BufferedRandom and numpy.load need nothing else."""
    with io.BufferedRandom(memory.open(4096, 1 << 20)) as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("name", b"content" * 10_000)
        length = file.tell()
    with zipfile.ZipFile(memory.open(4096, length)) as archive:
        assert archive.read("name") == b"content" * 10_000
    target = io.BytesIO()
    shutil.copyfileobj(memory.open(4096, 1000), target)
    assert target.getvalue() == memory[4096:5096]
    numbers = numpy.arange(1000.0).reshape(10, 100)
    numpy.save(memory.open(1 << 20), numbers)
    assert (numpy.load(memory.open(1 << 20)) == numbers).all()


# -- arrays ----------------------------------------------------------------------------------------------------------


def test_numpy_sees_bytes(memory):
    memory[0:3] = b"\x01\x02\xff"
    seen = numpy.asarray(memory)
    assert (seen.dtype, seen.shape, list(seen[:4])) == (numpy.uint8, (SIZE,), [1, 2, 255, 0])
    assert numpy.asarray(memory, dtype=numpy.int16).dtype == numpy.int16
    with pytest.raises(ValueError, match="always a copy"):
        numpy.asarray(memory.array(3), copy=False)


INDEX = st.one_of(
    st.integers(-3, 2), st.slices(3), st.just(slice(None)), st.just(slice(None, None, -1)), st.just(slice(1, 2))
)


@given(key=st.one_of(INDEX, st.just(...), st.lists(INDEX, max_size=3).map(tuple)), ellipsis=st.integers(0, 3))
def test_slices_are_those_of_numpy(shared, key, ellipsis):
    """Whatever is chosen: read, and written, as NumPy does it in its own memory."""
    if isinstance(key, tuple) and len(key) < 3 and ellipsis <= len(key):
        key = (*key[:ellipsis], ..., *key[ellipsis:])
    mine = numpy.arange(27, dtype="<u4").reshape(3, 3, 3)
    theirs = shared.array((3, 3, 3), "<u4", offset=12)
    theirs[...] = mine
    assert numpy.array_equal(theirs[key], mine[key])
    assert numpy.shape(theirs[key]) == numpy.shape(mine[key])
    mine[key] = numpy.arange(numpy.size(mine[key])).reshape(numpy.shape(mine[key])) + 100
    theirs[key] = mine[key]
    assert numpy.array_equal(theirs[...], mine)


@pytest.fixture(scope="module")
def shared(cluster):
    with cluster.connect() as memory:
        yield memory


def test_arrays_of_records_and_what_they_refuse(memory):
    records = memory.array(100, [("id", "<u4"), ("name", "S12")], offset=100)
    records[7] = (7, b"seven")
    assert (records[7]["name"], len(records), records.nbytes) == (b"seven", 100, 1600)
    assert memory[212:216] == b"\7\0\0\0"
    records[10:20] = records[7]
    assert list(records[9:21]["id"]) == [0, *[7] * 10, 0]
    with pytest.raises(IndexError, match="go beyond the memory"):
        memory.array((1 << 20, 2), "f8")
    with pytest.raises(TypeError, match="not bytes"):
        memory.array(3, object)
    with pytest.raises(TypeError, match="indexed by numbers, slices and"):
        records[[1, 2]]
    with pytest.raises(IndexError, match="index 100 of dimension 0"):
        records[100]
    with pytest.raises(IndexError, match="2 indexes for 1 dimensions"):
        records[1, 2]


# -- buffers, searching, copies --------------------------------------------------------------------------------------


def test_buffers_of_all_kinds_and_those_that_are_not_in_one_piece(memory):
    memory.pwrite(array.array("d", [1.5, 2.5]), 0)
    numbers = numpy.zeros(2)
    memory.readinto(numbers, 0)
    assert list(numbers) == [1.5, 2.5]
    assert memory.pwrite(numpy.zeros((0, 3)), 0) == 0
    for use in (memory.pwrite, memory.readinto):
        with pytest.raises(TypeError, match=r"\(shape \(5,\), strides \(2,\)\): give a copy"):
            use(memoryview(bytearray(10))[::2], 0)
        assert use(numpy.zeros(2, [("a", ">u4"), ("b", "S3")]), 0) == 14
    with pytest.raises(TypeError, match="not contiguous"):
        memory[0:6] = numpy.zeros((3, 4), "u1")[:, :2]


def test_in_searches(memory):
    """Bytes, over the seams of what is read at a time, and numbers."""
    memory[(1 << 20) - 2 : (1 << 20) + 2] = b"seam"
    assert b"seam" in memory
    assert b"seam" + bytes(1) in memory
    assert b"seams" not in memory
    assert (b"" in memory, 0 in memory, ord("s") in memory, 255 in memory) == (True, True, True, False)
    memory[SIZE - 2 : SIZE] = b"ZZ"
    assert b"ZZ" in memory
    assert b"ZZ\0" not in memory
    with pytest.raises(TypeError, match="not for a str"):
        _ = "seam" in memory
    with pytest.raises(ValueError, match="range"):
        _ = 256 in memory


def test_a_copy_and_a_pickle_have_their_own_connection(memory):
    memory[0:4] = b"same"
    for make in (copy.copy, lambda memory: pickle.loads(pickle.dumps(memory))):
        with make(memory) as other:
            assert other[0:4] == b"same"
            assert other._carrier is not memory._carrier
    assert memory[0:4] == b"same"


# -- misuse ----------------------------------------------------------------------------------------------------------


def _read(memory):
    return memory[0:4]


def test_a_fork_is_told_to_connect_again_and_hurts_nobody(memory):
    """At once, in its own exception; its parent goes on, whatever the child does and when it closes."""
    memory[0:4] = b"mine"
    begun = memory.start_pread(4, 0)
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        words = []
        for attempt in (lambda: memory[0:4], lambda: memory.pwrite(b"child", 0), begun.result):
            try:
                attempt()
            except memcluster.Misused as error:
                words.append(str(error))
        memory.close()
        with copy.copy(memory) as own:
            words.append(own[0:4].decode())
        os.write(writer, "|".join(words).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    told = "this memory was opened before a fork, and is the parent's: connect again in this process"
    assert os.read(reader, 4096).decode() == "|".join([told] * 3 + ["mine"])
    assert begun.result() == b"mine"
    assert memory[0:4] == b"mine"
    assert memory.reconnections == 0
    os.close(reader)
    os.close(writer)


def test_processes_of_multiprocessing_get_their_own_by_pickling(memory):
    memory[0:4] = b"pool"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (memory,)) == b"pool"


def test_a_second_thread_is_told_at_once_and_the_first_goes_on(cluster):
    """While one waits for a server that is paused, another one tries the same memory."""
    with cluster.connect() as memory:
        memory[SIZE - 4 : SIZE] = b"last"
        cluster.fault("pause", "server1", seconds=600)
        found = []
        begun = memory.start_pread(4, SIZE - 4)
        waiting = threading.Thread(target=lambda: found.append(begun.result()))
        waiting.start()
        while not memory._carrier._user:  # it has begun
            pass
        for attempt in (lambda: memory[0:1], lambda: memory.start_pread(1, 0), memory.close, memory.flush):
            with pytest.raises(memcluster.Misused, match="by another thread right now: give each thread its own"):
                attempt()
        cluster.fault("resume", "server1")
        waiting.join()
        assert found == [b"last"]
        with copy.copy(memory) as own:
            assert own[SIZE - 4 : SIZE] == b"last"
        assert memory.reconnections == 0


def test_a_signal_handler_that_uses_what_is_in_use_is_told(cluster):
    with cluster.connect() as memory:
        cluster.fault("pause", "server1", seconds=600)
        told = []

        def handler(_signum, _frame):
            try:
                memory[0:1]
            except memcluster.Misused as error:
                told.append(str(error))
            cluster.fault("resume", "server1")

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            assert len(memory[SIZE - 4 : SIZE]) == 4
        finally:
            signal.signal(signal.SIGALRM, before)
        assert told == ["this memory is in use right now, below this very call: a signal handler needs its own"]
