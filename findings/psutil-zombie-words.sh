# What psutil says of a zombie, a child that has ended and was not waited for: 5.9.0 gives [] for cmdline(), "" for exe(), and for
# environ() says that there is no such process, which is_running() and status() say there is. 7.2.2 raises ZombieProcess for all three, a
# kind of NoSuchProcess: a table of one's children that went through with the one ends, or lacks lines, with the other.
. "$(dirname "$0")/common.sh"
cat >zombie.py <<'PY'
import os
import subprocess

import psutil

child = subprocess.Popen(["true"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
zombie = psutil.Process(child.pid)


def said(ask):
    try:
        return repr(ask())
    except psutil.Error as error:
        return type(error).__name__


print(*map(said, (zombie.is_running, zombie.status, zombie.cmdline, zombie.exe, zombie.environ)))
PY
python_packages psutil==5.9.0 setuptools
expect "5.9.0" "True 'zombie' [] '' NoSuchProcess" "$(python zombie.py)"
python_packages psutil==7.2.2
expect "7.2.2" "True 'zombie' ZombieProcess ZombieProcess ZombieProcess" "$(python zombie.py)"
