# Ray 2.60.0: STRICT_SPREAD, which is there so that no machine takes two bundles of a placement group with it, is satisfied by two `ray start`
# on one machine with one address: what it spreads over are raylets. And a bundle belongs to none: when its raylet is killed it is on
# another one within seconds, and it stays there when there is one in the old place again.
# Needs root (network namespaces).
. "$(dirname "$0")/common.sh"
need_root "for network namespaces"
python_packages ray==2.60.0
cat >spread.py <<'PY'
import os
import signal
import subprocess
import time

import ray
from ray.util.placement_group import placement_group, placement_group_table

START = "ray start --address 10.77.1.2:6379 --num-cpus 1 --object-store-memory 100000000 --disable-usage-stats"
PLACE = ' --resources={"place":1}'


def wait_for(found):
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def alive():
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def places():
    found = placement_group_table(group)["bundles_to_node_id"]
    return [found[index] for index in sorted(found)]


def add(more=""):
    before = len(alive())
    subprocess.run((START + more).split(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(alive()) > before)


ray.init(address="10.77.1.2:6379", log_to_driver=False, logging_level="ERROR")
add(PLACE)
group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=120)
before = places()
print("nodes:", len(set(before)), "addresses:", len({alive()[node] for node in before}))
add()
head = ray.get_runtime_context().get_node_id()
[index] = [index for index, node in enumerate(before) if node != head]
for process in os.listdir("/proc"):
    if process.isdigit():
        with open(f"/proc/{process}/cmdline") as file:
            words = file.read().split("\0")
        if words[0].endswith("/raylet") and f"--node_id={before[index]}" in words:
            os.kill(int(process), signal.SIGKILL)
wait_for(lambda: before[index] not in alive() and places()[index] in alive())
moved = places()
print("moved:", [one != other for one, other in zip(before, moved)].count(True))
add(PLACE)
time.sleep(10)
print("moved back:", places() != moved)
PY
# shellcheck disable=SC2016 # for the inner shell
between_hosts '
    host 1 sh -euc "
        ray start --head --node-ip-address 10.77.1.2 --port 6379 --num-cpus 1 --object-store-memory 100000000 \
            --include-dashboard false --disable-usage-stats >head.log 2>&1
        python spread.py" >said 2>spread.log
' || { tail -n 5 head.log spread.log; skip "the nodes did not come to be"; }
expect "two bundles on one machine, a kill, and another raylet" "nodes: 2 addresses: 1|moved: 1|moved back: False|" "$(grep -E '^(nodes|moved)' said | tr '\n' '|')"
