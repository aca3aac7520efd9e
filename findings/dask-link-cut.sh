# Dask distributed 2026.8.0: a worker whose link to the scheduler drops every packet for 60 s does not come back when the link does.
# The worker closes, and its nanny, which is there to start it again when it dies, ends with it.
# Needs root (network namespaces).
. "$(dirname "$0")/common.sh"
need_root "for network namespaces"
python_packages distributed==2026.8.0 dask==2026.8.0
cat >workers.py <<'PY'
import sys

from distributed import Client

with Client("tcp://10.77.1.2:8786", timeout="60s") as client:
    if sys.argv[1] == "wait":
        client.wait_for_workers(1, timeout=60)
    print(len(client.scheduler_info()["workers"]))
PY
# shellcheck disable=SC2016 # for the inner shell
between_hosts '
    host 1 dask scheduler --host 10.77.1.2 --port 8786 --no-dashboard >scheduler.log 2>&1 &
    host 2 dask worker tcp://10.77.1.2:8786 --host 10.77.2.2 --nworkers 1 --nthreads 1 --no-dashboard >worker.log 2>&1 &
    worker=$!
    host 1 python workers.py wait >before 2>workers.log
    cut_link
    sleep 60
    mend_link
    (sleep 90; kill "$worker") & guard=$!
    wait "$worker" && code=0 || code=$?
    kill "$guard"
    echo "$code" >status
    host 1 python workers.py now >after 2>workers.log
' || { tail -n 5 ./*.log; skip "the two hosts did not come to be"; }
expect "workers before" 1 "$(cat before)"
expect "status of dask worker once the link is back" 0 "$(cat status)"
expect "workers after" 0 "$(cat after)"
