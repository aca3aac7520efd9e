"""The cluster in one process: no seed breaks a rule, a seed is a run wherever it runs, and what is wrong is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from forms import planted

from memcluster.launcher.cli import cli
from memcluster.node.log.record import Record
from memcluster.node.log.writer import LogWriter
from memcluster.node.nbd.wire import CommandFlag
from memcluster.node.serving.memory import Shard
from memcluster.node.serving.slots import SlotTable
from memcluster.node.topologies.primary_secondary import Primary
from memcluster.simulator import run
from memcluster.simulator.clock import Clock
from memcluster.simulator.faults import FAULTS, Fault
from memcluster.simulator.folder import clear
from memcluster.simulator.history import Operation
from memcluster.simulator.logrules import check_log
from memcluster.simulator.many import Sum, run_seeds
from memcluster.simulator.patience import check_refusals
from memcluster.simulator.plan import TOPOLOGIES, Ask, Client, Plan, Shape, Wish, make_plan
from memcluster.simulator.run import Outcome, simulate
from memcluster.simulator.shrink import shrink
from memcluster.simulator.words import check_torn, check_words
from memcluster.simulator.world import BEGINNING, MS, S

ROOT = Path(__file__).parent.parent
SEEDS = 12
FOUND_WITHIN = 60
"""Seeds in which what is planted here is found."""


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_seed_breaks_a_rule(topology: str) -> None:
    """The nodes' own code, with faults of all kinds; CI runs more seeds."""
    total = Sum()
    for result in run_seeds(range(SEEDS), Wish(topology)):
        total.add(result)
    assert not [(one.seed, one.broken) for one in total.failed]
    assert total.acknowledged > 0.9 * 60 * SEEDS
    assert total.faults.keys() >= {"kill", "pause", "slow"}


DIGESTS = """
from memcluster.simulator.plan import Wish, make_plan
from memcluster.simulator.run import simulate
print(*(simulate(make_plan(seed, Wish())).digest for seed in range(4)))
"""


def digests(python: str, hash_seed: str) -> str:
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    found = subprocess.run([python, "-c", DIGESTS], env=environment, capture_output=True, timeout=100, check=True)
    return found.stdout.decode()


def pythons() -> list[str]:
    """Those of this machine that could run memcluster, beside this one."""
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python3")
    known = [Path(f"/usr/bin/python3.{minor}") for minor in (11, 12, 13, 14)]
    others = {path.resolve() for path in (*beside, *known) if path.exists()}
    names = ("python3.11", "python3.12", "python3.13", "python3.14")
    return sorted(str(path) for path in others if path.name in names and str(path) != os.path.realpath(sys.executable))


def test_a_seed_is_a_run_whatever_python_runs_it() -> None:
    """Byte for byte: with other hashes, and with the other versions that are here."""
    first = digests(sys.executable, "1")
    assert len(set(first.split())) == 4
    assert digests(sys.executable, "2") == first
    for python in pythons():
        assert digests(python, "3") == first, python


def test_the_same_seed_again_is_the_same_run() -> None:
    plan = make_plan(5, Wish())
    assert simulate(plan).digest == simulate(plan).digest != simulate(replace(plan, seed=6)).digest


def test_nothing_is_left_of_a_run() -> None:
    """No file, and no descriptor, however many processes were killed in it."""
    wish = Wish(faults=("kill",))
    simulate(make_plan(3, wish))
    before = len(os.listdir("/proc/self/fd"))
    outcome = [simulate(make_plan(seed, wish)) for seed in range(8)]
    assert sum(one.faults["kill"] for one in outcome) > 3
    assert len(os.listdir("/proc/self/fd")) == before


STAYS = """
from memcluster.simulator.clock import Clock
from memcluster.simulator.folder import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_what_a_killed_simulation_left_goes_at_the_next_start() -> None:
    """Its folder in memory; that of one that runs stays."""
    words = [sys.executable, "-c", STAYS]
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as dead,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive,
    ):
        left, kept = (Path(one.stdout.readline().strip()) for one in (dead, alive) if one.stdout)
        dead.kill()
        dead.wait()
        clear.__wrapped__()
        assert not left.exists()
        assert kept.exists()
        alive.communicate("\n")
    assert not kept.exists()


def test_a_clock_of_its_own_jumps_and_drifts() -> None:
    """And tells when it showed a time; what it jumped over, when it jumped."""
    clock = Clock()
    assert clock.read(700) == 700
    clock.change(1_000, 500, 1_100_000)
    assert [clock.read(now) for now in (1_000, 2_000)] == [1_500, 2_600]
    clock.change(3_000, 0, 900_000)
    assert clock.read(4_000) == 4_600
    shown = (700, 1_200, 1_500, 2_600, 3_700, 4_600)
    assert [clock.when(shows) for shows in shown] == [700, 1_000, 1_000, 2_000, 3_000, 4_000]


def run_with(topology: str, kind: str, count: int) -> list[Outcome]:
    """Outcomes of runs in which such a fault took place, none of which broke a rule."""
    plans = (make_plan(seed, Wish(topology, faults=(kind,))) for seed in range(200))
    outcomes = [simulate(plan) for plan in islice((plan for plan in plans if plan.faults), count)]
    assert [outcome.broken for outcome in outcomes] == [[]] * count
    return outcomes


def test_clocks_of_hosts_differ() -> None:
    """Records' times are those of their servers' hosts, and stand in the merged log causes first all the same."""
    outcomes = run_with("primary-secondary", "clock", 4)
    assert all(outcome.faults["clock"] for outcome in outcomes)
    ends = [run.EPOCH + BEGINNING + int(outcome.seconds * S) for outcome in outcomes]
    assert any(record.start > end for outcome, end in zip(outcomes, ends, strict=True) for _, record in outcome.log)


def test_the_memorys_disk_is_full() -> None:
    """What has no room is refused, and reads go on."""
    plan = make_plan(1, Wish("primary-secondary", faults=()))
    outcome = simulate(replace(plan, faults=(Fault(0, "full", "memory", 100_000_000),)))
    assert outcome.broken == []
    assert {one.kind for one in outcome.history if one.outcome == "error"} >= {"WRITE"}
    assert all(one.acknowledged for one in outcome.history if one.kind == "READ")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_write_without_room_overtakes_nothing(topology: str) -> None:
    """Found by seed 310 when slices were first as short as this: the rest of a TRIM was left out for the write."""
    size = 512 << 10
    asks = (
        Ask("WRITE", 0, size, 0, 0),
        Ask("TRIM", 0, size, 0, 20_000_000),
        Ask("WRITE", 0, size // 2, 0, 0),
    )
    shape = Shape(topology, (size,) * 3, 0, "parallel", 4096)
    outcome = simulate(Plan(1, shape, (Client(2, True, asks),), (Fault(10_000_000, "full", "memory", 50_000_000),)))
    assert outcome.broken == []
    assert [one.outcome for one in outcome.history[:3]].count("acknowledged") == 2
    assert {one.number: one.outcome for one in outcome.history[:3]}[3] == "error"


def test_the_logs_disk_is_full() -> None:
    """Nobody notices but the log, which says how much it lost."""
    plan = make_plan(1, Wish("primary-secondary", requests=500, faults=()))
    outcome = simulate(replace(plan, faults=(Fault(0, "full", "logs", 3_000_000_000),)))
    assert outcome.broken == []
    assert all(one.acknowledged for one in outcome.history)
    assert sum(record.kind == 1 for _, record in outcome.log) < len(outcome.history)


def test_the_supervisor_is_killed() -> None:
    """And with it all nodes; the cluster that is started again has every acknowledged byte and record."""
    plan = make_plan(1, Wish("chain", faults=()))
    outcome = simulate(replace(plan, faults=(Fault(3_000_000, "kill", "supervisor"),)))
    assert outcome.broken == []
    assert sum(line.endswith("the cluster is started again") for line in outcome.trace) == 1
    assert len({record.identifier >> 34 & 0xFFFFF for _, record in outcome.log if record.kind == 1}) == 2


@pytest.mark.parametrize("moment", [23_100_000, 25_000_000, 27_000_000])
def test_a_server_dies_while_the_cluster_begins_again(moment: int) -> None:
    """Then it gives up, as at any first start, and is started once more."""
    plan = make_plan(1, Wish("primary-secondary", faults=()))
    faults = Fault(3_000_000, "kill", "supervisor"), Fault(moment, "kill", "server0", 0, 8)
    assert simulate(replace(plan, faults=faults)).broken == []


def test_who_dies_at_the_very_end_is_there_again_before_the_stop() -> None:
    """A logger's death of which its supervisor has not heard yet: seed 22521 stopped then, and had no merged log."""
    before = simulate(make_plan(1, Wish("chain", faults=())))
    over = max(one.returned for one in before.history if one.client != "client3") - BEGINNING
    for early in (0, 100_000, 1_000_000):
        plan = make_plan(1, Wish("chain", faults=()))
        assert simulate(replace(plan, faults=(Fault(over - early, "kill", "logger0"),))).broken == []


def test_what_waits_for_a_half_said_reply_is_not_overtaken() -> None:
    """Seed 2000847: of a client's writes that waited for the chain the first one found a reply half said, and waited
    again; then the client took the rest, and the others went before it."""
    size = 64 << 10
    asks = (
        Ask("WRITE", 0, 4096, 0, 0),
        Ask("WRITE", size - 4096, 8192, 0, 20 * MS),
        *(Ask("WRITE", size - 2048, 4096, 0, MS) for _ in range(3)),
        *(Ask("READ", 0, 8192, 0, 5 * MS) for _ in range(4)),
    )
    client = Client(16, False, asks)
    away = Fault(10 * MS, "partition", "server1", 100 * MS, 0, "server2")
    behind = Fault(27 * MS, "pause", "server0", 110 * MS)  # so that it meets the reads and the chain at once
    for seed in range(40):
        plan = Plan(seed, Shape("chain", (size,) * 3, 0, "parallel"), (client,), (away, behind))
        assert simulate(plan).broken == [], seed


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_last_look_waits_for_what_the_gone_have_begun(topology: str) -> None:
    """Seed 2003028: a server that had stood still went on with a long zeroing while the shards were looked at."""
    size = 256 << 10
    asks = Ask("WRITE", 0, 3 * size, 0, 0), Ask("WRITE_ZEROES", 0, 3 * size, CommandFlag.NO_HOLE, 10 * MS)
    shape = Shape(topology, (size,) * 3, 0, "parallel", 16 << 10)
    faults = Fault(10 * MS + MS // 2, "pause", "server2", 50 * MS), Fault(30 * MS, "kill", "client0")
    outcome = simulate(Plan(1, shape, (Client(1, False, asks),), faults))
    assert outcome.broken == []
    assert outcome.history[1].outcome == "unknown"


# -- planted faults --------------------------------------------------------------------------------------------------


def no_flush_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FLUSH reaches the primary alone."""
    begin = Primary.__init__

    def made(self: Primary, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        del self._everywhere[1:]

    monkeypatch.setattr(Primary, "__init__", made)


def extents_that_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds data is told as zeroes."""
    monkeypatch.setattr(Shard, "extents", lambda _self, _offset, length, *_: [(length, 3)])


def slots_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has gone keeps its place."""
    monkeypatch.setattr(SlotTable, "give_back", lambda *_: None)


def pages_that_keep_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TRIM forgets the bytes beside whole pages."""
    monkeypatch.setattr(Shard, "_clear", lambda *_: None)


def records_that_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is done and stands nowhere."""
    whole = LogWriter.append

    def append(self: LogWriter, *fields: int) -> None:
        if fields[2] % 16:
            whole(self, *fields)

    monkeypatch.setattr(LogWriter, "append", append)


@planted
@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (no_flush_elsewhere, {"once"}),
        (extents_that_lie, {"lost", "wrong", "back"}),
        (slots_that_are_kept, {"progress"}),
        (pages_that_keep_their_ends, {"lost", "shards", "back"}),
        (records_that_are_lost, {"once", "log"}),
    ],
)
def test_what_is_planted_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], rules: set[str]
) -> None:
    plant(monkeypatch)
    found = next(result for result in run_seeds(range(FOUND_WITHIN), Wish("primary-secondary")) if result.broken)
    assert {sentence.partition(":")[0] for sentence in found.broken} & rules


@planted
def test_a_server_that_waits_for_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary dies while a secondary is stopped: the next one serves its own bytes at once."""
    plan = make_plan(4, Wish("primary-secondary", faults=()))
    faults = Fault(1_000_000, "pause", "server1", 3 * S), Fault(5_000_000, "kill", "server0")
    plan = replace(plan, faults=faults)
    assert simulate(plan).broken == []

    def start(self: Primary) -> None:
        self._starting = True
        self._check_links()

    monkeypatch.setattr(Primary, "start", start)
    assert simulate(plan).rule == "waits"


# -- plans and stories -----------------------------------------------------------------------------------------------


def test_a_plan_can_be_kept() -> None:
    for seed in range(20):
        plan = make_plan(seed, Wish())
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_is_what_was_wished_for() -> None:
    plans = [make_plan(seed, Wish("chain", "stripe", 4, 5, 33, ("pause",))) for seed in range(20)]
    for plan in plans:
        assert plan.shape.topology == "chain"
        assert plan.shape.stripe
        assert len(plan.shape.sizes) == 4
        assert len(plan.clients) == 5
        assert plan.requests == 33
    assert {fault.kind for plan in plans for fault in plan.faults} == {"pause"}
    kinds = {fault.kind for seed in range(40) for fault in make_plan(seed, Wish()).faults}
    assert kinds == set(FAULTS)


def test_shrinking_leaves_what_matters() -> None:
    """A rule that is broken by one certain request of one client and by one fault."""
    plan = next(plan for seed in range(99) if len((plan := make_plan(seed, Wish())).faults) > 2)
    wanted, fault = plan.clients[1].asks[7], plan.faults[1]

    def breaks(candidate: Plan) -> bool:
        return fault in candidate.faults and any(ask is wanted for ask in candidate.clients[1].asks)

    small = shrink(plan, breaks)
    assert small.requests == 1
    assert small.faults == (fault,)


def invoke(*words: str) -> Result:
    """What the command says and returns, or raises."""
    return CliRunner().invoke(cli, ["simulate", *words], standalone_mode=False)


@planted
def test_a_failure_is_a_story(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It tells the rule, makes the run smaller, and writes what runs it again, its log and its timeline."""
    extents_that_lie(monkeypatch)
    monkeypatch.chdir(tmp_path)
    told = invoke("--seed", "4", "--topology", "chain", "--requests", "12")
    assert told.return_value == 1
    assert "BROKEN" in told.output
    assert "The smallest run that breaks this rule (12 requests" in told.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulate-4.html", "simulate-4.json", "simulate-4.log"]
    small = Plan.from_json(json.loads((tmp_path / "simulate-4.json").read_text()))
    assert small.requests < 12
    again = invoke("--replay", "simulate-4.json")
    assert again.return_value == 1
    assert "BROKEN" in again.output
    assert " ms  client" in again.output


def test_seeds_are_summed_up() -> None:
    told = invoke("--seeds", "1..4", "--requests", "20", "--faults", "pause,slow", "--json")
    assert told.return_value == 0
    found = json.loads(told.output)
    assert found["seeds"] == 4
    assert not found["failed"]
    assert set(found["faults"]) <= {"pause", "slow"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seeds", "9..3"], "'9..3' is not A..B"),
        (["--faults", "kill,fire"], "'fire' is none of kill, pause"),
        (["--replay", "nowhere.json"], "nowhere.json"),
    ],
)
def test_words_that_make_no_sense_are_told(words: list[str], sentence: str) -> None:
    assert sentence in str(invoke(*words).exception)


def test_a_world_that_gets_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MOST_EVENTS", 50)
    assert simulate(make_plan(1, Wish())).rule == "progress"


# -- the rules of the log --------------------------------------------------------------------------------------------


def test_the_rules_of_the_log() -> None:
    """A record that is missing, that is there twice, that nobody asked for, and a piece before its request."""
    outcome = simulate(make_plan(2, Wish("primary-secondary", faults=())))

    def nodes(*_: object) -> list[int]:
        return []


    def began(_server: int, record: Record) -> int:
        return record.start - run.EPOCH

    log, history = outcome.log, outcome.history
    assert check_log(log, history, nodes, began) == []
    at = next(index for index, (_, record) in enumerate(log) if record.kind == 1 and not record.error)
    assert any("no record of" in told for told in check_log(log[:at] + log[at + 1 :], history, nodes, began))
    assert any("2 times" in told for told in check_log([*log, log[at]], history, nodes, began))
    assert any("one record too many" in told for told in check_log([*log, log[at]], history, nodes, began))
    piece = next(entry for entry in log if entry[1].kind == 2)
    assert any("stands before it" in told for told in check_log([piece, *log], history, nodes, began))


# -- the rules of words and refusals -----------------------------------------------------------------------------------


def refused(invoked: int, returned: int, why: str) -> Operation:
    return Operation("client0", 1, "WRITE", 0, 512, 1, invoked, returned, "error", 0, [], why)


NO_ROOM, NO_ANSWER = "error 28: server1: No space left on device", "error 5: no answer from server1 for 2 s"
FULL, CUT = Fault(1 * S, "full", "memory", 1 * S), Fault(1 * S, "partition", "server0", 3 * S, 0, "server1")


@pytest.mark.parametrize(
    ("operation", "faults", "needed"),
    [
        (refused(S, 2 * S, NO_ROOM), [FULL], True),
        (refused(3 * S, 4 * S, NO_ROOM), [FULL], False),
        (refused(S, 3 * S, NO_ANSWER), [CUT], True),
        (refused(3 * S, 4 * S, NO_ANSWER), [CUT], False),
        (refused(5 * S, 8 * S, NO_ANSWER), [CUT], False),
        (refused(S, 3 * S, NO_ANSWER), [], False),
        (refused(S, 2 * S, "error 108: the cluster is shutting down"), [Fault(S, "kill", "supervisor")], True),
        (refused(S, 2 * S, "error 22: it makes no sense"), [FULL, CUT], False),
    ],
)
def test_what_is_refused_without_need_is_found(operation: Operation, faults: list[Fault], needed: bool) -> None:
    happened = [(fault.at, ("fault:", fault)) for fault in faults]
    assert bool(check_refusals([operation], happened, 0, 2 * S)) != needed


def test_a_server_that_was_dead_is_a_reason_to_refuse() -> None:
    happened = [(1 * S, ("server1", "ends:", "killed")), (4 * S, ("supervisor:", "ready", "server1"))]
    assert not check_refusals([refused(S, 4 * S, NO_ANSWER)], happened, 0, 2 * S)
    assert check_refusals([refused(3 * S, 6 * S, NO_ANSWER)], happened, 0, 2 * S)


def test_words_that_make_no_sense_to_a_process_are_found() -> None:
    mixed = refused(S, 2 * S, "the server broke the protocol: 0x0 is no reply")
    said = [(S, ("server2", "says", "server2: who passes orders on: <Order 1> before the WELCOME"))]
    assert [sentence.partition(":")[0] for sentence in check_words([mixed], said)] == ["spoken", "spoken"]
    assert not check_words([refused(S, 2 * S, NO_ROOM)], [(S, ("server2", "says", "server2: client 1: gone"))])


def test_a_connection_that_is_lost_for_a_death_before_its_time_is_found() -> None:
    """As by a gate on which a server died, and which another client has now."""
    came = Record(5 * S, 0, 0, 0, 0, 3, 3, 9, 0, 0, 1)
    torn = (6 * S, ("server0", "says", "server0: client 3: server2 cannot send it anything"))
    assert check_torn([(0, came)], [(4 * S, ("server2", "ends:", "killed")), torn], 0)
    assert not check_torn([(0, came)], [(5 * S + 1, ("server2", "ends:", "killed")), torn], 0)
    assert not check_torn([], [torn], 0)
