"""The chaos run: its checkers find what they are there for, and a short run from a fixed seed finds nothing.

Longer ones by hand: `python -m bench.chaos --seed 7 --for 60s`.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from harness import ROOT, need, run
from histories import write

sys.path.insert(0, str(ROOT))  # `bench` is not installed

from bench.chaos import places
from bench.chaos.logcheck import LogVerdict, check_log, logged_at
from bench.chaos.report import Report
from bench.chaos.runs import Runs
from bench.chaos.schedule import HOSTS, LEASE, PHASE, QUIET, WEIGHTS, plan
from memcluster.node.layout import Linear, Striped
from memcluster.node.topology import names
from memcluster.simulator.history import BLOCK, Operation
from memcluster.simulator.logrules import routed
from memcluster.simulator.rules import Verdict

A, B, C = 0xA, 0xB, 0xC

# -- the log -----------------------------------------------------------------------------------------------------

NODES = partial(logged_at, "primary-secondary", lambda _time: Linear((2 * BLOCK, 2 * BLOCK)))
REGION = [places.Region("all", 0, 4 * BLOCK)]
CLOCK = 1000


def logged(time: int, request: str = "0.1.1", *, kind: str = "request", node: str = "server0", block: int = 0,
           blocks: int = 1, operation: str = "WRITE", error: str | None = None) -> dict:  # fmt: skip
    return {
        "time_ns": time + CLOCK, "request": request, "kind": kind, "node": node, "operation": operation,
        "offset": block * BLOCK, "length": blocks * BLOCK, "error": error,
    }  # fmt: skip


def piece(request: str, node: str) -> dict:
    return logged(1, request, kind="piece", node=node)


SPANNING = [logged(2, block=1, blocks=2), piece("0.1.1", "server0"), piece("0.1.1", "server1")]
LOGS = {
    "each once": ([logged(2), logged(4, "0.1.2")], [write(A, 1, 3), write(B, 3, 5)], {}),
    "missing": ([logged(2)], [write(A, 1, 3), write(B, 3, 5)], {"missing": 1}),
    "at another time": ([logged(9)], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "of another length": ([logged(2, blocks=2)], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "another operation": ([logged(2, operation="TRIM")], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "an error is no record of success": ([logged(2, error="EIO")], [write(A, 1, 3)], {"missing": 1}),
    "twice": ([logged(2), logged(3, "0.1.2")], [write(A, 1, 3)], {"double": 1}),
    "twice under one identifier": ([logged(2), logged(3)], [write(A, 1, 3), write(B, 1, 3)], {"double": 1}),
    "sent again": ([logged(2), logged(3, "0.1.2")], [write(A, 1, 3, repeats=1)], {}),
    "sent again once": (
        [logged(2), logged(2, "0.1.2"), logged(3, "0.1.3")],
        [write(A, 1, 3, repeats=1)],
        {"double": 1},
    ),
    "unknown, there, late": ([logged(9)], [write(A, 1, 3, "unknown")], {}),
    "unknown, not there": ([], [write(A, 1, 3, "unknown")], {}),
    "shared out so that all have one": ([logged(2), logged(5, "0.1.2")], [write(A, 1, 6), write(B, 1, 3)], {}),
    "a probe": ([logged(2) | {"operation": "READ", "length": 1}], [], {}),
    "pieces of both": (SPANNING, [write(A, 1, 3, block=1, blocks=2)], {}),
    "a piece missing": (SPANNING[:2], [write(A, 1, 3, block=1, blocks=2)], {"missing_pieces": 1}),
    "a piece twice": ([*SPANNING, SPANNING[2]], [write(A, 1, 3, block=1, blocks=2)], {"double_pieces": 1}),
    "a remote piece alone": ([logged(2, block=3), piece("0.1.1", "server1")], [write(A, 1, 3, block=3)], {}),
    "a remote piece missing": ([logged(2, block=3)], [write(A, 1, 3, block=3)], {"missing_pieces": 1}),
    "pieces before their request": ([*SPANNING[1:], SPANNING[0]], [write(A, 1, 3, block=1, blocks=2)], {"before": 2}),
    "one of two before it": (
        [SPANNING[1], SPANNING[0], SPANNING[2]],
        [write(A, 1, 3, block=1, blocks=2)],
        {"before": 1},
    ),
    "before one that failed": ([piece("0.1.1", "server1"), logged(2, error="EIO")], [], {"before": 1}),
    "pieces of what never was done": ([piece("0.1.1", "server1")], [], {}),
}


@pytest.mark.parametrize("case", LOGS)
def test_the_log_is_held_against_what_was_acknowledged(case):
    """Missing and double records are counted, each where it belongs."""
    entries, operations, wanted = LOGS[case]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=0)
    counts = {
        name: getattr(verdict, name) for name in ("missing", "double", "missing_pieces", "double_pieces", "before")
    }
    assert {name: count for name, count in counts.items() if count} == wanted
    assert bool(verdict.told) == bool(wanted)


def test_what_a_short_log_no_longer_has_is_not_missed():
    """From the first record on that each server still has all must be there."""
    operations = [write(A, 1, 3), write(B, 5, 7), write(C, 9, 11)]
    entries = [logged(2), logged(4, "0.1.2", kind="event", node="server1"), logged(6, "0.1.3")]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=0, kept=False)
    assert (verdict.missing, verdict.double) == (1, 0)
    long = {**logged(0, kind="event", node="server2"), "duration_us": 0.010}  # it ended at 10, and was written then
    verdict = check_log([*entries, long], operations, REGION, NODES, CLOCK, slack=0, kept=False)
    assert verdict.missing == 0


def test_who_began_before_what_a_short_log_still_has_may_have_its_record_there():
    """Then those after it have theirs, too, although it could have been given to one of them."""
    operations = [write(A, 20, 24), write(B, 26, 40), write(C, 28, 70)]
    entries = [logged(12, kind="event"), logged(21), logged(27, "0.1.2"), logged(63, "0.1.3")]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=10, kept=False)
    assert (verdict.missing, verdict.double) == (0, 0)


ROUTED = {
    Linear((2 * BLOCK, 2 * BLOCK)): [(BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK)],
    Striped((2 * BLOCK, 2 * BLOCK), BLOCK): [(2 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK)],
}


@pytest.mark.parametrize("layout", ROUTED)
@pytest.mark.parametrize("missing", [None, 0, 1])
def test_each_part_of_what_a_client_routes_is_held_against_the_log(layout, missing):
    """One request a server, under the address of its first byte there; a part that is not logged is found."""
    parts = routed(layout, write(A, 1, 3, block=1, blocks=3))
    assert [(part.offset, part.length) for part in parts] == ROUTED[layout]
    entries = [
        {**logged(2, node=f"server{number}"), "offset": part.offset, "length": part.length}
        for number, part in enumerate(parts)
        if number != missing
    ]
    nodes = partial(logged_at, "client-routed", lambda _time: layout)
    verdict = check_log(entries, parts, REGION, nodes, CLOCK, slack=0)
    assert (verdict.missing, verdict.double, verdict.missing_pieces) == (missing is not None, 0, 0)


def test_each_run_has_its_layout():
    """A piece is looked for where the layout of its time has it; of what a client that routes had in flight when the
    map changed no part need be there, by either."""
    second = {"begin_ns": 100 + CLOCK, "sizes": [2 * BLOCK, 2 * BLOCK], "stripe": 0}
    runs = Runs([{"begin_ns": 0, "sizes": [BLOCK, 3 * BLOCK], "stripe": 0}, second], Linear((BLOCK,)))
    nodes = partial(logged_at, "primary-secondary", runs.at)
    before, after = write(A, 1, 3, block=1), write(B, 200, 203, block=1)
    entries = [logged(2, block=1), logged(201, "0.2.1", block=1)]
    verdict = check_log([*entries, piece("0.1.1", "server1")], [before, after], REGION, nodes, CLOCK, slack=0)
    assert verdict == LogVerdict(requests=2, pieces=1)
    assert check_log(entries, [before, after], REGION, nodes, CLOCK, slack=0).missing_pieces == 1
    assert [part.outcome for part in runs.parts(before, CLOCK, 0)] == ["acknowledged"]
    between = runs.parts(write(A, 90, 110, block=0, blocks=2), CLOCK, 0)
    assert [(part.offset, part.length, part.acknowledged) for part in between] == [
        (0, BLOCK, False), (BLOCK, BLOCK, False), (0, 2 * BLOCK, False)
    ]  # fmt: skip


def test_a_flush_of_a_client_that_routes_is_logged_by_every_server():
    """Under the address of the server's first byte."""
    flush = Operation("one", 1, "FLUSH", 0, 0, A, 1, 3, "acknowledged", 0, [], "")
    assert [part.offset for part in routed(Linear((BLOCK, BLOCK)), flush)] == [0, BLOCK]


def test_a_flush_is_logged_everywhere():
    """Its pieces have no bytes; flushes of others do not count as too many."""
    flush = Operation("one", 1, "FLUSH", 0, 0, A, 1, 3, "acknowledged", 0, [], "")
    entry = logged(2, blocks=0, operation="FLUSH")
    pieces = [piece("0.1.1", "server0"), piece("0.1.1", "server1")]
    verdict = check_log([entry, *pieces, entry | {"request": "0.1.2"}], [flush], REGION, NODES, CLOCK, slack=0)
    assert verdict == LogVerdict(requests=2, pieces=2)


def test_every_outcome_is_counted():
    """With what was answered before it was sent."""
    report = Report("a run")
    outcomes = ("acknowledged", "unknown", "error", "early")
    report.count(write(A, 1, 2, outcome) for outcome in outcomes)
    assert report.outcomes == dict.fromkeys(outcomes, 1)


@pytest.mark.parametrize("fault", [
    {"left": ["process 1"]}, {"trouble": ["down"]}, {"disagreements": ["a page"]}, {"unserved": ["a byte"]},
    *({"verdict": Verdict(**{name: {A}})} for name in ("lost", "wrong", "back", "late", "mixed", "early")),
    *({"log": LogVerdict(**{name: 1})} for name in ("missing", "missing_pieces", "double", "double_pieces", "before")),
])  # fmt: skip
def test_whatever_was_found_fails_the_run(fault):
    """Then the folder is kept."""
    assert not Report("a run").failed
    assert Report("a run", **fault).failed


# -- schedule and places -----------------------------------------------------------------------------------------


def test_a_schedule_follows_from_its_seed():
    """The same seed, the same faults; in their order, within the time, and of every kind."""
    assert plan(7, 60.0, 3) == plan(7, 60.0, 3) != plan(8, 60.0, 3)
    faults = plan(8, 1000.0, 3)
    assert all(one.at <= other.at for one, other in pairwise(faults))
    assert all(0 < fault.at < 1000 - QUIET for fault in faults if fault.kind != "resume")
    targets = {fault.target for fault in faults}
    assert targets >= {"server0", "server1", "server2", "logger0", "fork server", "supervisor", "all"}
    assert {fault.kind for fault in faults} == {
        "kill", "pause", "resume", "slow", "partition", "hang", "crowd", "zeroes", "fail"
    }  # fmt: skip
    assert len(faults) > 800
    assert not any(
        fault.target in ("server0", "supervisor", "fork server", "all") or fault.kind != "kill"
        for fault in faults
        if fault.kind in ("kill", "fail", "zeroes") and fault.at % (2 * PHASE) < PHASE - 0.5
        if fault.at % (2 * PHASE) > 0.5  # of a pair that has begun before
    )
    assert sum(WEIGHTS.values()) == 100


@pytest.mark.parametrize("seed", range(5))
def test_every_pause_ends(seed):
    """Each has its resume."""
    faults = plan(seed, 100.0, 3)
    for name in ("pause", "resume"):
        assert any(fault.kind == name for fault in faults)
    pauses = sorted(fault.target for fault in faults if fault.kind in ("pause", "crowd"))
    assert pauses == sorted(fault.target for fault in faults if fault.kind == "resume")


def test_one_server_has_no_links_to_cut():
    """Nothing is asked of a cluster that makes no sense there."""
    assert {fault.target for fault in plan(1, 500.0, 1)} <= {"server0", "logger0", "supervisor", "fork server", "all"}


def test_servers_that_are_not_linked_are_not_cut_off():
    """Where clients route by themselves; everything else happens to these servers, too."""
    assert {fault.kind for fault in plan(1, 500.0, 3, linked=False)}.isdisjoint({"partition"})


def test_other_hosts_are_cut_off_for_less_than_their_lease_and_for_more():
    """Each link comes back; and faults of hosts are for those that there are."""
    faults = plan(1, 1000.0, 3, weights=HOSTS, only=HOSTS, hosts=["b", "c"])
    kinds = {fault.kind for fault in faults if fault.target in ("b", "c")}
    assert kinds == {"kill guardian", "kill host", "lose host", "cut", "cut for long", "mend"}
    for kind, longest in (("cut", LEASE), ("cut for long", 2 * LEASE)):
        for cut in [fault for fault in faults if fault.kind == kind]:
            ends = [end.at - cut.at for end in faults if (end.kind, end.target) == ("mend", cut.target)]
            assert any(longest - LEASE < span < longest for span in ends)
    assert plan(1, 1000.0, 3) == plan(1, 1000.0, 3, hosts=["b", "c"])


@pytest.mark.parametrize("layout", [
    Linear((16 << 20,) * 3), Linear((48 << 20,)), Linear((6 << 20,) * 8), Striped((16 << 20,) * 3, 65536),
])  # fmt: skip
@pytest.mark.parametrize("clients", [1, 4, 16])
def test_regions_do_not_overlap(layout, clients):
    """And lie within the memory; with several servers, shared bytes are on more than one of them."""
    chosen = places.choose(layout, clients)
    regions = sorted((*chosen.ours, chosen.fio, chosen.copy), key=lambda region: region.offset)
    assert len(regions) == clients + 7
    assert all(chosen.rest.offset <= spot.offset for spot in chosen.spots)
    assert all(spot.offset + spot.length <= chosen.rest.offset + chosen.rest.length for spot in chosen.spots)
    assert all(one.offset + one.length <= other.offset for one, other in pairwise(regions))
    assert regions[-1].offset + regions[-1].length <= layout.size
    if len(layout.sizes) > 1:
        for region in (chosen.shared[0], chosen.copy):
            assert len(layout.split(region.offset, region.length)) > 1


# -- a run -------------------------------------------------------------------------------------------------------

RUNS = {
    "parallel-linear": ["--seed", "13"],
    "serial-stripe": ["--seed", "8", "--fan-out", "serial", "--layout", "stripe", "--storage", "directory"],
    "dispatcher": ["--seed", "27", "--topology", "dispatcher", "--layout", "stripe"],
    "chain": ["--seed", "39", "--topology", "chain"],
    "client-routed": ["--seed", "11", "--topology", "client-routed", "--layout", "stripe"],
}
assert set(names()) - set(RUNS) == {"primary-secondary"}, "the default; every other topology has its run"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("combination", RUNS)
def test_a_short_run_loses_nothing_and_leaves_nothing(tmp_path: Path, combination: str, capsys):
    """Six seconds of load and faults; the report is printed whatever it says, and a failure leaves its folder."""
    need("fio", "fio")
    need("nbdcopy", "libnbd-bin")
    need("nbdkit", "nbdkit")
    words = [sys.executable, "-m", "bench.chaos", "--for", "6s", "--every", "0.6", *RUNS[combination]]
    done = run(*words, cwd=tmp_path, timeout=280, check=False)
    with capsys.disabled():
        print("", done.stdout.decode(), sep="\n")
    assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode())
    for name in ("lost", "wrong", "late", "log missing"):
        assert any(line.startswith(name) for line in done.stdout.decode().splitlines())


SABOTAGE = """
from bench.chaos import run
from bench.chaos.__main__ import main
from memcluster.simulator.history import read_operations

look = run._look_at_the_end

def spoil(options, subject, places, report):
    with (subject.folder / "data" / "shard0").open("r+b") as shard:
        for operation in read_operations([subject.folder / "history" / "client0.jsonl"]):
            shard.seek(operation.offset + 5)
            byte = shard.read(1)  # of a write's tag
            if operation.kind == "WRITE" and byte.strip(b"\\0"):
                shard.seek(operation.offset + 5)
                shard.write(bytes([byte[0] ^ 0x80]))
                break
    look(options, subject, places, report)

run._look_at_the_end = spoil
if __name__ == "__main__":
    main()
"""


@pytest.mark.timeout(300)
def test_a_run_that_fails_leaves_a_folder_from_which_it_is_run_again(tmp_path: Path):
    """A byte of a shard is spoilt under the running cluster: the report says so, the folder tells the same once more
    from what was recorded, and the same faults are done again, to a cluster that nobody spoils."""
    spoilt, temporary = tmp_path / "spoilt.py", tmp_path / "temporary"
    spoilt.write_text(SABOTAGE)
    temporary.mkdir()

    def chaos(*words: str | Path) -> tuple[int, dict[str, str], str]:
        done = run(sys.executable, *words, cwd=tmp_path, timeout=120, check=False, TMPDIR=str(temporary))
        report = done.stdout.decode()
        said = report + done.stderr.decode()
        assert "Traceback" not in said, said
        return done.returncode, {line[:22].rstrip(): line[22:] for line in report.splitlines()}, said

    options = ["--for", "4s", "--clients", "2", "--no-real", "--storage", "directory", "--seed", "3"]
    code, found, said = chaos(spoilt, *options)
    assert (code, found["wrong"], found["lost"], found["left behind"]) == (1, "1", "0", "nothing"), said
    assert "of last" in said
    [folder] = temporary.iterdir()
    assert said.endswith(f"python -m bench.chaos --replay {folder}\n")
    for name in ("cluster.yaml", "schedule.json", "faults.json", "run.json", "history", "log.jsonl", "logs", "report"):
        assert (folder / name).exists()
    assert (folder / "report").read_text() in said

    code, again, said = chaos("-m", "bench.chaos", "--replay", folder, "--check-only")
    assert (code, again.pop("run")) == (1, f"{found['run']}, as it was recorded"), said
    assert {name: again[name] for name in ("requests", "blocks read", "wrong", "log", "longest pause")} == {
        name: found[name] for name in ("requests", "blocks read", "wrong", "log", "longest pause")
    }
    assert list(temporary.iterdir()) == [folder]

    code, last, said = chaos("-m", "bench.chaos", "--replay", folder, "--keep")
    assert (code, last["run"], last["wrong"]) == (0, found["run"], "0"), said
    [other] = set(temporary.iterdir()) - {folder}
    assert (other / "schedule.json").read_text() == (folder / "schedule.json").read_text()
