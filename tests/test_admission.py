"""node/serving/admission.py and node/serving/budget.py: who is let in, and how much all of them may take up."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import no_descriptors
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.serving import admission as door
from memcluster.node.serving.admission import CPU_SAMPLES, MARKS, Admission, Shortage, Usage, look_at_the_machine
from memcluster.node.serving.cgroup import memory_in_use

GiB = 1 << 30
CALM = Usage(0.1, 0.1, 0.1)


def test_a_fixed_limit_refuses_with_its_number_and_counts():
    """The sentence names the limit; a place given back is taken again."""
    admission = Admission(1)
    slot = admission.take()
    assert isinstance(slot, int)
    assert "clients.limit: 1" in str(admission.take())
    assert admission.refusals == {"slots": 1}
    admission.give_back(slot)
    assert isinstance(admission.take(), int)


def test_another_machine_has_so_many_places_and_no_more():
    """Others, and this one, still get in; when one of its clients has gone, it gets in again."""
    admission = Admission(64, per_address=2)
    slots = [admission.take("192.0.2.7") for _ in range(2)]
    assert "192.0.2.7 has 2 client slots (clients.per_address" in str(admission.take("192.0.2.7"))
    assert all(isinstance(admission.take(origin), int) for origin in ("192.0.2.8", "", "", ""))
    admission.give_back(int(slots[0]))
    assert isinstance(admission.take("192.0.2.7"), int)
    assert admission.refusals == {"address": 1}


def test_another_machine_has_so_many_connections_and_no_more():
    """Those included that nobody has let in; of the gone nothing is kept."""
    admission = Admission(64, per_address=2)
    assert [admission.connected("192.0.2.7") for _ in range(5)] == [True] * 4 + [False]
    assert all(admission.connected(origin) for origin in ("192.0.2.8", "", "", "", "", ""))
    for _ in range(4):
        admission.gone("192.0.2.7")
    assert not admission._connected["192.0.2.7"]
    assert admission.connected("192.0.2.7")


def test_auto_lets_in_until_a_resource_runs_short_and_names_it():
    """Memory short: refused with that reason; again after it has recovered below the low mark, not before."""
    usage = CALM
    admission = Admission(None, lambda: usage)
    for memory, admitted in [(0.5, True), (0.91, True), (0.93, False), (0.90, False), (0.87, True), (0.91, True)]:
        usage = CALM._replace(memory=memory)
        admission.sample()
        answer = admission.take()
        assert isinstance(answer, int) is admitted, (memory, answer)
        if not admitted:
            assert str(answer).startswith("memory of this machine ran short")
    assert admission.refusals == {"memory": 2}


def test_auto_that_cannot_look_for_want_of_a_descriptor_is_short_of_them():
    """To look at the machine takes one; when there is one again it lets in again."""
    admission = Admission(None, look_at_the_machine())
    with no_descriptors():
        admission.sample()
    assert "file descriptors of this machine ran short: 100% in use" in str(admission.take())
    admission.sample()
    assert "file descriptors" not in str(admission.take())


def test_a_short_burst_of_work_is_no_shortage_of_processors():
    """Only samples in a row count."""
    shortage = Shortage()
    for _ in range(CPU_SAMPLES - 1):
        shortage.sample(CALM._replace(cpu=1.0))
    assert not shortage.short
    shortage.sample(CALM)
    for _ in range(CPU_SAMPLES):
        shortage.sample(CALM._replace(cpu=1.0))
    assert "cpu" in shortage.short
    shortage.sample(CALM._replace(cpu=0.9))
    assert "cpu" in shortage.short
    shortage.sample(CALM)
    assert not shortage.short


@given(st.lists(st.builds(Usage, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=50))
def test_it_does_not_flap(samples):
    """Between two changes of the answer for a resource its use has crossed the whole margin between the marks."""
    shortage = Shortage()
    for usage in samples:
        before = set(shortage.short)
        shortage.sample(usage)
        for name in before ^ set(shortage.short):
            value = getattr(usage, name)
            assert value >= MARKS[name].high if name in shortage.short else value <= MARKS[name].low


def group(directory: Path, limit: str | int, used: int, files: int = 0, *, version: int = 2) -> None:
    """A control group as the kernel shows it."""
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if version == 2 else "total_"
    for name, value in zip(names, (limit, used), strict=True):
        (directory / name).write_text(f"{value}\n")
    half = files // 2
    (directory / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {half}\n{prefix}active_file {half}\n")


def member(root: Path, *lines: str) -> Path:
    """What /proc says about this process; where its groups lie."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root / "sys/fs/cgroup"


def test_a_limit_of_the_control_group_or_of_one_around_it_counts(tmp_path):
    """The tightest of them; what files hold is room."""
    top = member(tmp_path, "0::/outer/inner")
    group(top / "outer/inner", "max", 3 * GiB)
    group(top / "outer", 4 * GiB, 3 * GiB, files=GiB)
    assert memory_in_use(tmp_path) == 0.5
    group(top / "outer/inner", 3 * GiB, 3 * GiB)
    assert memory_in_use(tmp_path) == 1.0


def test_a_container_sees_its_own_group_at_the_top(tmp_path):
    top = member(tmp_path, "0::/")
    group(top, 2 * GiB, GiB)
    assert memory_in_use(tmp_path) == 0.5


def test_version_1_of_control_groups(tmp_path):
    """Its memory groups lie apart; a container is told the path on the host, which is not there. No limit is a number
    beyond all memory, and the groups of other controllers have none."""
    top = member(tmp_path, "5:cpu,cpuacct:/cpu", "4:memory:/docker/0123", "0::/unified") / "memory"
    group(top, 9223372036854771712, GiB, version=1)
    group(top.parent / "memory/cpu", GiB, GiB, version=1)
    assert memory_in_use(tmp_path) < 0.001
    group(top, 2 * GiB, 2 * GiB, files=GiB, version=1)
    assert memory_in_use(tmp_path) == 0.5


@pytest.mark.parametrize("lines", [(), ("0::/",), ("0::/../../other",), ("4:memory:/there",)])
def test_without_a_limit_there_is_none(tmp_path, lines):
    """Nor where nothing of it can be read, nor on the machine's own root group."""
    member(tmp_path, *lines)
    assert memory_in_use(tmp_path) == 0
    assert memory_in_use(tmp_path / "nowhere") == 0


def test_here_it_is_a_part():
    """Whatever this very process is in."""
    assert 0 <= memory_in_use() <= 1


def test_auto_looks_at_the_machine_and_at_the_control_group(monkeypatch):
    """Whichever has less room."""
    monkeypatch.setattr(door, "memory_in_use", lambda: 0.999)
    assert door.look_at_the_machine()().memory >= 0.999
    monkeypatch.setattr(door, "memory_in_use", lambda: 0.0)
    assert 0 < door.look_at_the_machine()().memory <= 1
