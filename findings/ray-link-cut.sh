# Ray 2.60.0: a node whose link drops every packet for 60 s is lost when the link is back, not while it is cut. The raylet lives through
# the cut, learns from the head that it was marked as dead, and ends itself; its message calls that a mistake, and an overload
# likely. `ray start --block` ends with status 1, and nothing in Ray starts the node again. Cuts of 28 s and 40 s left it in place.
# Needs root (network namespaces).
. "$(dirname "$0")/common.sh"
need_root "for network namespaces"
python_packages ray==2.60.0
cat >nodes.py <<'PY'
import sys
import time

import ray

ray.init(address="10.77.1.2:6379", log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 90
while time.monotonic() < deadline:
    alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if len(alive) == int(sys.argv[1]):
        break
    time.sleep(1)
print(*alive)
PY
# shellcheck disable=SC2016 # for the inner shell
between_hosts '
    common="--block --disable-usage-stats --num-cpus 1 --object-store-memory 100000000"
    host 1 ray start --head $common --node-ip-address 10.77.1.2 --port 6379 --include-dashboard false >head.log 2>&1 &
    until host 1 python -c "import socket; socket.create_connection((\"10.77.1.2\", 6379), 1)" 2>/dev/null; do sleep 1; done
    host 2 ray start --address 10.77.1.2:6379 --node-ip-address 10.77.2.2 $common >node.log 2>&1 &
    node=$!
    host 1 python nodes.py 2 >before 2>nodes.log
    cut_link
    sleep 60
    (kill -0 "$node" && echo runs || echo ended) >meanwhile
    mend_link
    (sleep 120; kill "$node" 2>/dev/null) & guard=$!
    wait "$node" && code=0 || code=$?
    kill "$guard" 2>/dev/null || true
    echo "$code" >status
    host 1 python nodes.py 1 >after 2>nodes.log
' || { tail -n 5 ./*.log; skip "the two hosts did not come to be"; }
expect "nodes before" "10.77.1.2 10.77.2.2" "$(cat before)"
expect "at the end of the cut" runs "$(cat meanwhile)"
expect "status of ray start --block once the link is back" 1 "$(cat status)"
expect "the raylet's reason" "this node manager has mistakenly been marked as dead by the GCS" \
    "$(cat tmp2/ray/session_*/logs/raylet.out | grep -o 'this node manager has .* by the GCS' | head -n 1)"
expect "nodes after" "10.77.1.2" "$(cat after)"
