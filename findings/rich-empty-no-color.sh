# rich takes an environment variable that is set to nothing for set in 13.7.0, and for not set in 15.0.0: `NO_COLOR= program` lost its
# colours and now keeps them, `FORCE_COLOR= program` had colours in a pipe and now has none.
. "$(dirname "$0")/common.sh"
said() {  # VARIABLE=VALUE: whether colours are off, and whether a pipe is taken for a terminal
    env -u NO_COLOR -u FORCE_COLOR -u TTY_COMPATIBLE -u TTY_INTERACTIVE "$1" python -c '
import io
from rich.console import Console
print(Console(file=io.StringIO(), force_terminal=True).no_color, Console(file=io.StringIO()).is_terminal)'
}
python_packages rich==13.7.0
expect "13.7.0, NO_COLOR set to nothing" "True False" "$(said NO_COLOR=)"
expect "13.7.0, FORCE_COLOR set to nothing" "False True" "$(said FORCE_COLOR=)"
python_packages rich==15.0.0
expect "15.0.0, NO_COLOR set to nothing" "False False" "$(said NO_COLOR=)"
expect "15.0.0, FORCE_COLOR set to nothing" "False False" "$(said FORCE_COLOR=)"
expect "15.0.0, both set" "True False|False True" "$(said NO_COLOR=1)|$(said FORCE_COLOR=1)"
