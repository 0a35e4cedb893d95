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
# These are computation without waits or shared ports: two at a time.
$bin/python -m pytest tests/unit tests/contract -n 2
exec $bin/python -m pytest tests/actors tests/e2e
