#!/usr/bin/env bash
# The tests with the lowest, or with the newest, direct dependencies that requirements.txt allows.
#
#   scripts/check_versions.sh lowest python3.11                     # the whole suite
#   scripts/check_versions.sh newest python3.13
#   scripts/check_versions.sh newest python3.13 tests/core -k tree  # further arguments are pytest's
#
# The second argument is the interpreter. The environment is build/versions/<lowest or newest>-<Python's version>,
# or the folder in VENV; it is made once and brought up to date by each call. Indirect dependencies are at their
# newest in both. What a run of the whole suite prints is also appended to benchmarks/versions.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "check_versions.sh: $1; usage: scripts/check_versions.sh lowest|newest PYTHON [PYTEST ARGUMENT ...]" >&2; exit 2; }
[ $# -ge 2 ] || usage "two arguments are needed"
end=$1 python=$2
shift 2
case $end in
  lowest | newest) ;;
  *) usage "$end is neither lowest nor newest" ;;
esac
version=$("$python" -c 'import platform; print(platform.python_version())') || usage "$python does not run"
venv=${VENV:-build/versions/$end-$version}
bin=$venv/bin
record=/dev/null
[ $# -gt 0 ] || record=benchmarks/versions.txt

test -x "$bin/python" || "$python" -m venv "$venv"
# name>=1.2,<2 becomes name==1.2
sed -E 's/#.*//; /^[[:space:]]*$/d; s/>=([^,[:space:]]*).*/==\1/' requirements.txt > "$venv/lowest.txt"
: > "$venv/newest.txt"
names=$(sed -E 's/==.*//' "$venv/lowest.txt" | tr _ - | paste -sd '|')
"$bin/python" -m pip install --quiet --upgrade pip
"$bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager --constraint "$venv/$end.txt" \
  -r requirements.txt "pytest>=8" "pytest-xdist>=3.6" "beartype>=0.21" "hypothesis>=6.100" "setuptools>=77"

failed=0
{
  echo
  echo "$(date -u +%Y-%m-%d), Python $version, $(uname -sm)"
  echo "== $end: $("$bin/python" -m pip list --format=freeze | tr _ - | grep -iE "^($names|jaxlib)==" | paste -sd ' ')"
  echo "pytest $*"
  # The suite's own files make the package importable from here: nothing is installed but its dependencies.
  "$bin/python" -m pytest -o addopts="-q --strict-markers" -n "${WORKERS:-2}" --dist loadfile "$@" \
    | sed -E '/^[.sxX]* *\[ *[0-9]*%\]$/d; /^bringing up nodes/d'
} | tee -a "$record" || failed=1
exit $failed
