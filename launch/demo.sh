#!/usr/bin/env bash
# The main job: TRD on the arithmetic testbed with the real stack. Arguments are passed on, for
# example: ./launch/demo.sh run.num_steps=20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh cpu
run_dir=runs/demo-$(date +%Y%m%d-%H%M%S)
exec .venv/bin/trd-ray train configs/experiment/trd_opd.yaml "run.dir=$run_dir" "$@"
