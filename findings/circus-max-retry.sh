# circus 0.19.0 starts a program that fails at once again and again, for ever, as often as it looks (check_delay, a second by default), and
# nothing tells of it: the log has one line, that it was started, and `circusctl status` says active. max_retry, "number of times we attempt
# to start a process before abandoning", is for a program that is not there alone: that is tried so often, and is stopped then.
. "$(dirname "$0")/common.sh"
python_packages circus==0.19.0 pyzmq==27.3.0 tornado==6.6.1 psutil==7.2.2
cat >circus.ini <<INI
[circus]
check_delay = 0.1
endpoint = ipc://$work/asked
pubsub_endpoint = ipc://$work/told
[watcher:fails]
cmd = sh -c "echo >>$work/starts; exit 3"
max_retry = 2
[watcher:missing]
cmd = $work/no-such-program
max_retry = 2
INI
circusd circus.ini >log 2>&1 & started=$!
for _ in $(seq 300); do
    [ "$(cat starts 2>/dev/null | wc -l)" -lt 12 ] || break
    sleep 0.1
done
asked() { circusctl --endpoint "ipc://$work/asked" "$@" | sort | tr '\n' ' '; }
expect "starts, of 2" "12 and more" "$([ "$(wc -l <starts)" -ge 12 ] && echo 12 and more)"
expect "status" "fails: active missing: stopped " "$(asked status)"
asked quit >quit
wait "$started" || true
said() { sed -n "s/.*\] \[[A-Z]*\] //p" log | grep -w "$1" | grep -v ' stopped$' | sort | uniq -c | sed 's/^ *//; s/: \[Errno.*//'; }
expect "the log of the one" "1 fails started" "$(said fails)"
expect "and of the other" "2 error in 'missing'" "$(said missing)"
