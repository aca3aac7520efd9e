# A click group that is called without a command prints its help, in 8.1.8 to stdout with status 0, in 8.5.1 to stderr with status 2: a
# script that goes on after `program`, or pages its output, has another program when click is newer. `--help` is as it was.
. "$(dirname "$0")/common.sh"
cat >program.py <<'PY'
import click


@click.group()
def program():
    """Does nothing."""


program()
PY
called() {
    python program.py "$@" >out 2>err && code=0 || code=$?
    echo "$code, on stdout: $(grep -c Usage out || true), on stderr: $(grep -c Usage err || true)"
}
python_packages click==8.1.8
expect "8.1.8, no command" "0, on stdout: 1, on stderr: 0" "$(called)"
expect "8.1.8, --help" "0, on stdout: 1, on stderr: 0" "$(called --help)"
python_packages click==8.5.1
expect "8.5.1, no command" "2, on stdout: 0, on stderr: 1" "$(called)"
expect "8.5.1, --help" "0, on stdout: 1, on stderr: 0" "$(called --help)"
