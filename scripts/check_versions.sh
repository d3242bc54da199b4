#!/usr/bin/env bash
# The tests with the lowest and with the newest direct dependencies that requirements.txt allows.
#
#   scripts/check_versions.sh                                  # both, the whole test suite
#   scripts/check_versions.sh both tests/test_losses.py        # further arguments are pytest's
#   scripts/check_versions.sh lowest tests/test_losses.py      # one of them
#
# PYTHON is the interpreter (python3), VENVS the folder of the two environments (build/versions). What the
# dependencies themselves depend on is at its newest in both. benchmarks/versions.txt has the last output.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venvs=${VENVS:-build/versions}
which=${1:-both}
shift || true
case $which in
  both) which="lowest newest" ;;
  lowest | newest) ;;
  *) echo "check_versions.sh: $which is none of both, lowest, newest" >&2; exit 2 ;;
esac

mkdir -p "$venvs"
# name>=1.2,<2 becomes name==1.2
sed -E 's/#.*//; /^[[:space:]]*$/d; s/>=([^,[:space:]]*).*/==\1/' requirements.txt > "$venvs/lowest.txt"
: > "$venvs/newest.txt"
names=$(sed -E 's/==.*//' "$venvs/lowest.txt" | paste -sd '|')
echo "$(date -u +%Y-%m-%d), $("$python" --version), $(uname -sm)"

failed=0
for each in $which; do
  bin=$venvs/$each/bin
  test -x "$bin/python" || "$python" -m venv "$venvs/$each"
  "$bin/python" -m pip install --quiet --upgrade pip
  "$bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager \
    --constraint "$venvs/$each.txt" -r requirements.txt "pytest>=8" "pytest-xdist>=3.6" "beartype>=0.21" "hypothesis>=6.100"
  echo
  echo "== $each: $("$bin/python" -m pip list --format=freeze | tr _ - \
    | grep -iE "^($(echo "$names" | tr _ -)|jaxlib)==" | paste -sd ' ')"
  # The suite's own files make the package importable from here: nothing is installed but its dependencies.
  echo "pytest $*"
  "$bin/python" -m pytest -o addopts="-q --strict-markers" -n 2 --dist loadfile "$@" \
    | sed '/^[.sx]* *\[ *[0-9]*%\]$/d' || failed=1
done
exit $failed
