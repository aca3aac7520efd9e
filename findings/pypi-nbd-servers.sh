# Two NBD servers on PyPI install without a word and cannot start. pypxe 1.8.4's wheel says that it is for any Python 3, and its module
# for NBD is Python 2's: imports beside itself, and sends str. swiftnbd 0.11 says no version, and uses a word that Python 3.7 took
# away. pip looks at neither.
. "$(dirname "$0")/common.sh"
python_packages pypxe==1.8.4 swiftnbd==0.11
imported() { python -W ignore -c "import $1" 2>&1 | tail -n 1; }
expect "import pypxe.nbd.nbd" "ModuleNotFoundError: No module named 'writes'" "$(imported pypxe.nbd.nbd)"
expect "import swiftnbd.server" "SyntaxError: invalid syntax" "$(imported swiftnbd.server)"
