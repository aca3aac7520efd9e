# CPython 3.14's fork server has the words of its parent's command. They stand behind its code on its command line, so that `pgrep -f`
# for the program's name finds two processes where 3.11 had one; and a preloaded module that looks at sys.argv sees what the program
# was called with, where it saw ['-c'] before: an option it acts on at its import acts in the fork server, too. And 3.11.2 looks for
# modules to preload in the current folder, not in the program's; what it does not find it leaves out without a word.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
cat >program.py <<'PY'
import multiprocessing
from multiprocessing import forkserver
from pathlib import Path

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loaded"])
    process = context.Process(target=int)
    process.start()
    words = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/cmdline").read_text().split("\0")
    process.join()
    seen = Path("/root/argv")
    print("behind the code:", words[words.index("-c") + 2 : -1], "preloaded with:", seen.exists() and seen.read_text())
PY
cat >loaded.py <<'PY'
import sys
from pathlib import Path

Path("/root/argv").write_text(repr(sys.argv))
PY
called() {  # FOLDER PYTHON
    mkdir -p root/program root/root
    rm -f root/root/argv
    cp program.py loaded.py root/program
    in_root sh -c "cd $1 && exec $2 /program/program.py --verbose"
}
debian_packages bookworm python3.11=3.11.2-6+deb12u8
expect "3.11.2, there" "behind the code: [] preloaded with: ['-c']" "$(called /program python3.11)"
expect "3.11.2, elsewhere" "behind the code: [] preloaded with: False" "$(called / python3.11)"
rm -rf "$work/root" "$work/apt"
debian_packages sid python3.14=3.14.10-1
words="['/program/program.py', '--verbose']"
expect "3.14.10, there" "behind the code: $words preloaded with: $words" "$(called /program python3.14)"
expect "3.14.10, elsewhere" "behind the code: $words preloaded with: $words" "$(called / python3.14)"
