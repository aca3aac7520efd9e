# A process that multiprocessing has started by "forkserver" counts as over when the fork server, its parent, is dead: exitcode is
# 255, is_alive() is false, join() returns and kill() does nothing, while the process runs on. (Its exit status comes through the
# fork server, and 255 stands for "nobody can tell".) Nor is the fork server's death told: the next start() has another one begun,
# in the environment of that moment. The children of the old one belong to nobody. In 3.11.2 and, where "forkserver" is what one
# gets without asking, in 3.14.10.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
cat >program.py <<'PY'
import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver


def state(pid):
    with open(f"/proc/{pid}/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return "waits for its pipe" if found["State"].split()[0] in "SR" else found["State"]


def wait(pipe):
    pipe.recv()


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=wait, args=(theirs,))
    process.start()
    first = forkserver._forkserver._forkserver_pid
    os.kill(first, signal.SIGKILL)
    process.join()
    print("exitcode", process.exitcode, "is_alive", process.is_alive())
    process.kill()
    time.sleep(1)
    print(state(process.pid))
    os.environ["ADDED"] = "since"
    after = context.Process(target=int)
    after.start()
    after.join()
    with open(f"/proc/{forkserver._forkserver._forkserver_pid}/environ") as file:
        print("the next exits with", after.exitcode, "under another" * (forkserver._forkserver._forkserver_pid != first),
              "with ADDED" if "ADDED=since" in file.read().split("\0") else "without")
    os.kill(process.pid, signal.SIGKILL)
PY
recorded="exitcode 255 is_alive False|waits for its pipe|the next exits with 0 under another with ADDED|"
seen_of() {  # PYTHON
    mkdir -p root/program
    cp program.py root/program
    in_root unshare --pid --fork --kill-child sh -c "mount -t proc proc /proc; $1 /program/program.py" | tr '\n' '|'
}
debian_packages bookworm python3.11=3.11.2-6+deb12u8 util-linux mount
expect "3.11.2" "$recorded" "$(seen_of python3.11)"
rm -rf "$work/root" "$work/apt"
debian_packages sid python3.14=3.14.10-1 util-linux mount
expect "3.14.10" "$recorded" "$(seen_of python3.14)"
