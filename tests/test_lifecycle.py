"""launcher/supervision/lifecycle.py: what follows from what happened, as histories."""

from __future__ import annotations

import pytest

from memcluster.launcher.supervision.actions import Collect, Drain, Finish, Hold, Kill, Probe, Say, ShowStack, Start
from memcluster.launcher.supervision.lifecycle import COLLECTING, EVIDENCE, Lifecycle, Phase
from memcluster.launcher.supervision.nodelife import RestartPolicy, State
from memcluster.launcher.supervision.patience import LAST_STAGES

SERVERS = ["server0", "server1", "server2"]
LOGGERS = ["logger0", "logger1", "logger2"]
ALL = [*SERVERS, *LOGGERS]


def make(**policy) -> Lifecycle:
    return Lifecycle(SERVERS, LOGGERS, restart=RestartPolicy(**policy), stop_timeout=10.0)


def running(**policy) -> Lifecycle:
    """A cluster that became ready at time 0."""
    life = make(**policy)
    life.begin(0)
    for name in ALL:
        life.ready(name, 0)
    life.probed()
    assert life.health == "running"
    return life


def without_words(actions):
    return [action for action in actions if not isinstance(action, Say)]


def words(actions):
    return [(action.event, action.name) for action in actions if isinstance(action, Say)]


def test_everything_is_started_at_once():
    """The sockets are bound already, so nobody waits for anybody."""
    assert make().begin(0) == [Start(name) for name in ALL]


def test_the_cluster_runs_when_all_are_ready_and_the_probe_was_answered():
    """The last one's readiness asks for the probe, the probe makes it run."""
    life = make()
    life.begin(0)
    for name in ALL[:-1]:
        assert without_words(life.ready(name, 1)) == []
    assert without_words(life.ready(ALL[-1], 1)) == [Probe()]
    assert life.health == "starting"
    assert words(life.probed()) == [("running", "")]
    assert life.health == "running"


def test_a_node_that_says_it_cannot_run_stops_the_start():
    """The reason is told, the rest is stopped, the code is 1."""
    life = make()
    life.begin(0)
    life.broken("server1", "the shard is somebody else's")
    actions = life.exited("server1", "exited with status 1", 1)
    assert Say("gave-up", "", "server1: the shard is somebody else's") in actions
    assert Drain("server0", "now") in actions
    assert life.code == 1


def test_the_stop_has_an_order():
    """Primary, secondaries, the collection, loggers, logger 0; each when the one before is gone."""
    life = running()
    assert without_words(life.stop("now", None, 1)) == [Drain("server0", "now")]
    assert without_words(life.exited("server0", "", 1)) == [Drain("server1", "now"), Drain("server2", "now")]
    assert without_words(life.exited("server2", "", 1)) == []
    assert without_words(life.exited("server1", "", 1)) == [Collect(COLLECTING * 10)]
    assert life.collected(1) == [Drain("logger1", "now"), Drain("logger2", "now")]
    assert without_words(life.exited("logger1", "", 1)) == []
    assert without_words(life.exited("logger2", "", 1)) == [Drain("logger0", "now")]
    assert without_words(life.exited("logger0", "", 1)) == [Finish(0)]
    assert life.phase is Phase.STOPPED


def giving_way() -> Lifecycle:
    """For another cluster, which takes server 0 over: that rests, and the others are on their way."""
    life = running()
    drained = [Drain(name, "now") for name in ("logger1", "logger2", "logger0")]
    assert without_words(life.give_way({"server0"}, 1)) == [Hold("server0"), *drained]
    assert end(life, "logger0", "logger1", "logger2") == []
    assert without_words(life.held("server0", 1)) == [Drain("server1", "now"), Drain("server2", "now")]
    assert life.nodes["server0"].state is State.HELD
    return life


def end(life: Lifecycle, *names: str) -> list[object]:
    """What follows when they exit."""
    return [action for name in names for action in without_words(life.exited(name, "", 2))]


def test_a_door_is_kept_for_another_cluster():
    """All others end as in any stop, without a merged log, for another cluster goes on with it."""
    life = giving_way()
    assert end(life, "server1", "server2") == [Finish(0)]
    assert life.nodes["server0"].state is State.HELD
    assert end(life, "server0") == []
    assert life.nodes["server0"].state is State.EXITED


def test_a_door_that_rests_ends_when_no_other_cluster_comes():
    """Whether the others have ended already or not; so does one that was not yet asked for all it had in flight."""
    life = giving_way()
    assert without_words(life.stop("now", None, 2)) == [Drain("server0", "now")]
    assert end(life, "server0") == [Drain("server1", "now"), Drain("server2", "now")]
    life = giving_way()
    end(life, "server1", "server2")
    assert without_words(life.stop("now", None, 2)) == [Drain("server0", "now")]
    assert end(life, "server0") == [Finish(0)]
    life = running()
    life.give_way({"server0"}, 1)
    assert without_words(life.stop("now", None, 2)) == [Drain("server0", "now")]
    assert life.held("server0", 2) == []
    assert end(life, "logger0", "logger1", "logger2") == []
    assert Drain("server1", "now") in end(life, "server0")


def test_a_door_that_rests_is_killed_with_the_rest():
    life = giving_way()
    assert {Kill(name) for name in SERVERS} == set(without_words(life.kill(2)))


def test_a_door_that_does_not_come_to_rest_is_killed():
    """At the deadline of the stop; the rest goes on."""
    life = running()
    life.give_way({"server0"}, 1)
    assert end(life, "logger0", "logger1", "logger2") == []
    assert without_words(life.tick(12)) == [Kill("server0")]
    assert end(life, "server0") == [Drain("server1", "now"), Drain("server2", "now")]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_log_that_nobody_merges_is_told(when):
    """Logger 0 was stopped on purpose, or dies while it writes; of a cluster that never ran no log is expected."""
    life = running()
    if when == "before":
        life.halt("logger0", 0)
        life.exited("logger0", "killed by SIGKILL", 0)
    life.stop("now", None, 1)
    life.exited("server0", "", 1)
    life.exited("server1", "", 1)
    actions = life.exited("server2", "", 1)
    if when == "meanwhile":
        assert without_words(actions) == [Collect(COLLECTING * 10)]
        actions = life.exited("logger0", "killed by SIGKILL", 1)
    assert Say("uncollected", "logger0", "logger0 is not there") in actions
    assert without_words(actions) == [Drain("logger1", "now"), Drain("logger2", "now")]
    life = make()
    life.begin(0)
    life.broken("logger0", "no room")
    said = words(life.exited("logger0", "exited with status 1", 1))
    for name in SERVERS:
        said += words(life.exited(name, "", 1))
    assert ("uncollected", "logger0") not in said


def test_what_is_late_is_named_and_killed_and_the_log_is_still_collected():
    """At the deadline the present stage is killed; the stages after it go on."""
    life = running()
    life.stop("now", 5, 100)
    assert life.wake == 105
    assert life.tick(104.9) == []
    actions = life.tick(105)
    assert words(actions) == [("late", "server0")]
    assert without_words(actions) == [Kill("server0")]
    assert without_words(life.exited("server0", "killed by SIGKILL", 105)) == [
        Drain("server1", "now"),
        Drain("server2", "now"),
    ]
    life.exited("server1", "", 105)
    assert without_words(life.exited("server2", "", 105)) == [Collect(COLLECTING * LAST_STAGES)]
    assert life.wake == 105 + LAST_STAGES
    killed = without_words(life.tick(105 + LAST_STAGES))
    assert killed == [Kill(name) for name in LOGGERS]


def test_draining_waits_for_clients_without_a_deadline_and_then_with_one():
    """--drain has no deadline of its own; its --timeout turns it into a stop."""
    life = running()
    assert without_words(life.stop("finish", None, 1)) == [Drain("server0", "finish")]
    assert life.wake is None
    life = running()
    life.stop("finish", 5, 1)
    assert without_words(life.tick(6)) == [Drain("server0", "now")]
    assert life.wake == 16


def test_sigterm_hastens_a_drain():
    """A stop while clients are waited for ends the waiting; a second stop changes nothing."""
    life = running()
    life.stop("finish", None, 1)
    assert without_words(life.stop("now", None, 2)) == [Drain("server0", "now")]
    assert life.stop("now", None, 3) == []


@pytest.mark.parametrize("mode", ["now", "finish"])
def test_a_later_stop_can_only_bring_the_end_nearer(mode):
    """Who asks again with less patience waits no longer than that; who has more changes nothing."""
    life = running()
    life.stop(mode, 60, 1)
    assert life.stop(mode, 5, 2) == []
    assert life.wake == 7
    life.stop(mode, 30, 3)
    life.stop("finish", None, 3)
    assert life.wake == 7


def test_killing_ends_a_drain_that_waits_for_a_restart():
    """What is to come back does not, and the cluster has ended when the last process has."""
    life = running()
    life.hold("server1", 50)
    life.exited("server1", "killed", 1)
    life.stop("finish", None, 2)
    life.kill(3)
    assert life.wake is None
    assert life.tick(50) == []
    ended = [action for name in ALL if name != "server1" for action in life.exited(name, "killed", 51)]
    assert without_words(ended) == [Finish(0)]


@pytest.mark.parametrize("mode", ["now", "finish"])
def test_what_hangs_as_a_stop_begins_is_killed_when_it_has_shown_its_stack(mode):
    """The stop need not wait for it until its deadline, and nothing is started beside it."""
    life = running()
    life.hung("server0", "no progress", 1)
    life.stop(mode, None, 1)
    assert life.tick(1 + EVIDENCE) == [Kill("server0")]
    assert without_words(life.exited("server0", "killed", 2)) == [Drain("server1", "now"), Drain("server2", "now")]


def test_what_hangs_is_killed_once():
    """A second Ctrl-C does not wait for the stack, and nothing follows at the time it was due."""
    life = running()
    life.hung("server1", "no progress", 1)
    assert without_words(life.kill(1)) == [Kill(name) for name in ALL]
    assert life.wake is None


def test_killing_kills_everything_at_once():
    """The second Ctrl-C."""
    life = running()
    life.stop("now", None, 1)
    assert without_words(life.kill(2)) == [Kill(name) for name in ALL]
    for name in ALL[:-1]:
        assert without_words(life.exited(name, "killed", 2)) == []
    assert without_words(life.exited(ALL[-1], "killed", 2)) == [Finish(0)]


@pytest.mark.parametrize("dead", ["logger0", "server0"])
def test_a_stop_does_not_wait_for_what_is_dead(dead):
    """A node that is between two lives is not started again, and its phase is over at once."""
    life = running(deaths=99)
    life.exited(dead, "killed", 1)
    life.ready(dead, 1)
    life.exited(dead, "killed", 2)
    assert life.nodes[dead].state is State.RESTARTING
    pending = without_words(life.stop("now", None, 3))
    assert life.wake == 13
    for _ in ALL:
        for action in list(pending):
            pending.remove(action)
            if isinstance(action, Drain):
                pending += without_words(life.exited(action.name, "", 3))
            elif isinstance(action, Collect):
                pending += life.collected(3)
    assert pending == [Finish(0)] or life.phase is Phase.STOPPED


def test_restarts_come_at_once_and_then_after_1_2_4_seconds_up_to_the_cap():
    """fdbmonitor's arithmetic: 0, then powers of two."""
    life = running(cap=4, deaths=99)
    delays = []
    now = 1.0
    for _ in range(6):
        actions = life.exited("server1", "killed by SIGKILL", now)
        if Start("server1") in actions:
            delays.append(0.0)
        else:
            delays.append(life.wake - now)
            now = life.wake
            assert life.tick(now) == [Start("server1")]
        life.ready("server1", now)
    assert delays == [0, 1, 2, 4, 4, 4]
    assert life.nodes["server1"].restarts == 6


def test_a_stable_time_resets_the_count():
    """After it, the next death is the first again."""
    life = running(reset=60, deaths=99)
    life.exited("server1", "killed", 1)
    life.ready("server1", 1)
    assert Start("server1") not in life.exited("server1", "killed", 2)
    life.tick(life.wake)
    life.ready("server1", 3)
    assert Start("server1") in life.exited("server1", "killed", 3 + 60)


def test_too_many_deaths_fail_the_node_and_degrade_the_cluster():
    """N deaths in T seconds: failed, with the reason; the others go on."""
    life = running(deaths=3, within=60)
    for now in (1, 2):
        life.exited("server1", "killed by SIGKILL", now)
        if life.wake:
            life.tick(life.wake)
        life.ready("server1", now)
    actions = life.exited("server1", "killed by SIGKILL", 3)
    assert without_words(actions) == []
    assert life.nodes["server1"].state is State.FAILED
    assert life.nodes["server1"].reason == "died 3 times in 60 s, last: killed by SIGKILL"
    assert life.health == "degraded"


def test_a_node_that_has_failed_is_started_again_when_it_is_released():
    """And its deaths count from the beginning. One that is about to exit, for it cannot run, is not there twice."""
    life = running(deaths=2)
    for now in (1, 2):
        life.exited("server1", "killed by SIGKILL", now)
        life.ready("server1", now)
    assert life.nodes["server1"].state is State.FAILED
    assert life.release("server1", 3) == [Start("server1")]
    life.broken("server1", "its log is another's")
    assert life.release("server1", 4) == []
    assert life.exited("server1", "exited with status 1", 5) == [Say("failed", "server1", "its log is another's")]
    assert life.release("server1", 6) == [Start("server1")]
    life.ready("server1", 7)
    assert Start("server1") in life.exited("server1", "killed by SIGKILL", 8)


def test_deaths_long_ago_do_not_count():
    """Only those within the window."""
    life = running(deaths=2, within=10)
    life.exited("server1", "killed", 1)
    life.ready("server1", 1)
    life.exited("server1", "killed", 12)
    assert life.nodes["server1"].state is not State.FAILED


def test_a_cluster_with_a_dead_node_is_degraded_until_it_is_back():
    """Health follows the nodes."""
    life = running()
    life.exited("logger2", "killed", 1)
    assert life.health == "degraded"
    life.ready("logger2", 2)
    assert life.health == "running"


def test_a_hung_node_shows_its_stack_is_killed_and_comes_back():
    """Evidence first, then SIGKILL, then the restart of any node that died, with the hang as the reason."""
    life = running()
    assert without_words(life.hung("server1", "no progress for 10 s", 5)) == [ShowStack("server1")]
    assert life.health == "degraded"
    assert life.hung("server1", "no progress for 11 s", 5.1) == []
    assert life.tick(5 + EVIDENCE) == [Kill("server1")]
    actions = life.exited("server1", "killed by SIGKILL", 6)
    assert Say("died", "server1", "no progress for 10 s") in actions
    assert Start("server1") in actions


def test_a_node_killed_on_purpose_stays_down_so_long_and_it_does_not_count():
    """Held: restarted at its time, and no step towards `failed`."""
    life = running(deaths=2)
    for now in (1, 10):
        life.hold("server1", now + 5)
        assert without_words(life.exited("server1", "killed by SIGKILL", now)) == []
        assert life.wake == now + 5
        assert life.tick(now + 5) == [Start("server1")]
        life.ready("server1", now + 5)
    assert life.health == "running"


def test_where_every_server_is_a_door_all_of_them_let_their_clients_finish():
    """The doors stop together, each in the mode that was asked for."""
    life = Lifecycle(SERVERS, LOGGERS, doors=3, restart=RestartPolicy(), stop_timeout=10.0)
    life.begin(0)
    for name in ALL:
        life.ready(name, 0)
    life.probed()
    assert without_words(life.stop("finish", None, 1)) == [Drain(name, "finish") for name in SERVERS]
    assert without_words(life.exited("server0", "", 2)) == []
    assert without_words(life.exited("server2", "", 2)) == []
    assert without_words(life.exited("server1", "", 2)) == [Collect(COLLECTING * 10)]


def test_a_node_that_hangs_before_it_is_ready_is_found_too():
    """A restart that gets nowhere is no better than a loop that stands still."""
    life = running()
    life.exited("server1", "killed", 1)
    assert life.nodes["server1"].state is State.STARTING
    assert without_words(life.hung("server1", "no progress for 10 s", 12)) == [ShowStack("server1")]


def test_while_clients_finish_what_they_need_is_restarted():
    """--drain: a secondary that dies, or waits for its restart, comes back; the door does not."""
    life = running(deaths=99)
    life.hold("server1", 5)
    life.exited("server1", "killed", 1)
    life.stop("finish", None, 2)
    assert life.tick(5) == [Start("server1")]
    assert Start("logger1") in life.exited("logger1", "killed", 6)
    assert without_words(life.hung("server2", "no progress", 7)) == [ShowStack("server2")]
    assert life.tick(7 + EVIDENCE) == [Kill("server2")]
    assert Start("server2") in life.exited("server2", "killed", 8)
    life.exited("logger1", "killed", 9)
    assert life.nodes["logger1"].state is State.RESTARTING
    assert without_words(life.exited("server0", "", 9)) == [Drain("server1", "now"), Drain("server2", "now")]
    assert life.nodes["logger1"].state is State.EXITED
    assert life.wake == 19


def test_when_the_clients_have_finished_the_stop_has_a_deadline():
    """Whatever --drain waited for: from then on it is a stop like any other."""
    life = running()
    life.stop("finish", None, 1)
    assert life.wake is None
    life.exited("server0", "", 100)
    assert life.wake == 110
    assert words(life.tick(110)) == [("late", "server1"), ("late", "server2")]


def test_a_hung_door_does_not_keep_the_drain_waiting():
    """Its clients get no answer any more: it is killed, and not started again."""
    life = running()
    life.stop("finish", None, 1)
    assert without_words(life.hung("server0", "no progress", 5)) == [ShowStack("server0")]
    actions = without_words(life.exited("server0", "killed", 5))
    assert actions == [Drain("server1", "now"), Drain("server2", "now")]
    assert not any(isinstance(action, Start | Kill) for action in life.tick(6))


def test_a_node_that_is_kept_down_can_be_let_go():
    """`fault resume` ends the hold: it is started at once, and only once."""
    life = running()
    life.hold("server1", 100)
    life.exited("server1", "killed", 1)
    assert life.release("server1", 2) == [Start("server1")]
    assert life.release("server1", 2) == []
    assert life.wake is None
    assert life.release("server2", 2) == []


def test_a_node_that_dies_again_and_again_is_started_again_for_ever():
    """Never often enough to be given up, and never alive for long enough that it would count as well."""
    life = make(deaths=2, within=1.0, reset=60.0, cap=30.0)
    life.begin(0.0)
    node = life.nodes["server1"]
    for number in range(1, 1100):
        life.ready("server1", number * 100.0)
        life.exited("server1", "killed by SIGKILL", number * 100.0 + 40)
        assert node.due is None or node.due <= number * 100.0 + 40 + 33
        life.tick(number * 100.0 + 80)
    assert node.restarts == 1099


def test_a_planned_stop_is_no_death():
    """It is killed, and stays down until it is launched; no restart is counted, and no death."""
    life = running(deaths=2)
    assert life.halt("server1", 1) == [Kill("server1")]
    assert words(life.exited("server1", "killed by SIGKILL", 1)) == [("stopped", "server1")]
    assert (life.nodes["server1"].state, life.health, life.wake) == (State.STOPPED, "degraded", None)
    assert life.halt("server1", 2) == []
    assert life.launch("server1", 3) == [Start("server1")]
    assert life.launch("server1", 3) == []
    life.ready("server1", 4)
    assert (life.nodes["server1"].restarts, life.nodes["server1"].deaths, life.health) == (0, [], "running")


def test_a_planned_restart_starts_again_at_once():
    """Also if `start` comes while it is being stopped; of a node that is down there is nothing to stop."""
    life = running()
    assert life.halt("server1", 1, again=True) == [Kill("server1")]
    assert without_words(life.exited("server1", "killed by SIGKILL", 1)) == [Start("server1")]
    life.ready("server1", 2)
    life.halt("server1", 3)
    assert life.launch("server1", 3) == []
    assert without_words(life.exited("server1", "killed by SIGKILL", 3)) == [Start("server1")]
    life.ready("server1", 4)
    life.halt("server1", 5)
    life.exited("server1", "killed by SIGKILL", 5)
    assert life.halt("server1", 6, again=True) == [Start("server1")]
    assert life.nodes["server1"].restarts == 0


def test_what_is_down_can_be_stopped_and_launched():
    """A node that waits for its restart, one that has failed: a stop keeps it down, a launch has it begin anew."""
    life = running(deaths=2)
    life.exited("server1", "killed by SIGKILL", 1)
    life.exited("server1", "killed by SIGKILL", 2)
    assert life.nodes["server1"].state is State.FAILED
    assert words(life.halt("server1", 3)) == [("stopped", "server1")]
    assert life.launch("server1", 4) == [Start("server1")]
    life.ready("server1", 4)
    life.hold("server2", 100)
    life.exited("server2", "killed by SIGKILL", 5)
    assert words(life.halt("server2", 6)) == [("stopped", "server2")]
    assert life.wake is None


def test_the_stop_of_the_cluster_passes_over_what_is_stopped():
    life = running()
    for name in ("server0", "logger0"):
        life.halt(name, 1)
        life.exited(name, "killed by SIGKILL", 1)
    assert without_words(life.stop("now", None, 2)) == [Drain("server1", "now"), Drain("server2", "now")]
    life.exited("server1", "exited with status 0", 3)
    assert without_words(life.exited("server2", "exited with status 0", 3)) == [
        Drain("logger1", "now"),
        Drain("logger2", "now"),
    ]
    life.exited("logger1", "exited with status 0", 4)
    assert without_words(life.exited("logger2", "exited with status 0", 4)) == [Finish(0)]
