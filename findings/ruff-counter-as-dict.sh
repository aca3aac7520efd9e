# ruff 0.17.6's C416 asks for dict(pairs) in place of {first: second for first, second in pairs}, for a Counter of pairs, too. A Counter
# is iterated by its keys but copied by its items: the rewrite, which ruff marks as unsafe, has the pairs as keys and counts as values.
. "$(dirname "$0")/common.sh"
python_packages ruff==0.17.6
cat >pairs.py <<'PY'
from collections import Counter

pairs = Counter([("a", "b"), ("a", "b"), ("c", "d")])
print({first: second for first, second in pairs})
PY
expect "as written" "{'a': 'b', 'c': 'd'}" "$(python pairs.py)"
expect "C416" "C416" "$(ruff check --isolated --select C416 --output-format concise pairs.py | grep -o 'C416')"
ruff check --isolated --quiet --select C416 --fix --unsafe-fixes pairs.py
expect "as rewritten" "{('a', 'b'): 2, ('c', 'd'): 1}" "$(python pairs.py)"
