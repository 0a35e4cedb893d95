#!/usr/bin/env bash
# The whole test suite: lint, types, layers, then unit, contract, actor and end-to-end tests.
# Arguments go to pytest, for example: ./launch/test.sh tests/unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh cpu dev smollm2 trackers
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/mypy
$bin/lint-imports
if [ $# -gt 0 ]; then
  exec $bin/python -m pytest "$@"
fi
# Hundreds of processes import the project; where Python may not write bytecode, each would compile it anew.
$bin/python -m compileall -q trd_ray actors launch tests
# Two at a time. These are computation without waits or shared ports:
$bin/python -m pytest tests/unit tests/contract -n 2
# These wait as much as they compute. A file's tests stay together, since they share a cluster or a run; long files
# come first. What has to share its cores is slow and not dead: limits of the chaos runs are longer.
export TRD_CHAOS_PATIENCE=${TRD_CHAOS_PATIENCE:-4}
exec $bin/python -m pytest tests/e2e tests/actors -n 2 --dist loadfile --no-loadscope-reorder
