#!/usr/bin/env bash
#SBATCH --job-name=trd-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@900
#
# One run on the nodes of one SLURM job: a Ray cluster over them, the driver on the first, all gone at the end.
#
#   cd trd-ray && sbatch launch/cluster/slurm.sh configs/experiment/qwen3/trd_opd_4b.yaml run.dir=/shared/runs/first
#   launch/cluster/slurm.sh --dry-run CONFIG ...      prints what would be done, on any machine
#
# The folder that it is submitted from holds trd-ray and its .venv, and is on a file system that the nodes share.
# 15 minutes before the time is up the run is asked to stop: it ends with a checkpoint, and --resume continues it.
#
# NOT RUN on SLURM: tests run it with stand-ins for srun, scontrol and ray.
set -euo pipefail

dry_run=false
if [ "${1:-}" = --dry-run ]; then
  dry_run=true
  shift
fi
if [ $# -eq 0 ]; then
  echo "slurm: usage: slurm.sh [--dry-run] CONFIG run.dir=/shared/... [key=value ...] [--resume]" >&2
  exit 2
fi

if $dry_run; then
  folder=$PWD job=${SLURM_JOB_ID:-1} nodes=(node1 node2) head_ip=10.0.0.1
else
  : "${SLURM_JOB_ID:?slurm: not in a SLURM job; start it with sbatch}"
  folder=$SLURM_SUBMIT_DIR job=$SLURM_JOB_ID
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
fi
cd "$folder"
bin=${TRD_RAY_BIN:-.venv/bin}
# Another job may have a cluster on the same node.
port=$((20000 + job % 10000))
cpus=${SLURM_CPUS_PER_TASK:-32}

export PYTHONPATH="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# srun hands the environment on; nothing is written to a disk that others read.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')

steps=()
driver=""
in_background() {
  if $dry_run; then
    echo "$* &"
  else
    "$@" &
    steps+=($!)
  fi
}
# shellcheck disable=SC2329  # it is called by the trap
end() {
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
  for step in "${steps[@]}"; do wait "$step" 2>/dev/null || true; done
}
trap end EXIT
trap 'if [ -n "$driver" ]; then kill -TERM "$driver"; else exit 1; fi' TERM INT

in_background srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" "$bin/ray" start --head --block \
  --node-ip-address="$head_ip" --port="$port" --num-cpus="$cpus" --include-dashboard=false --disable-usage-stats
if [ ${#nodes[@]} -gt 1 ]; then
  others=$((${#nodes[@]} - 1))
  in_background srun --nodes="$others" --ntasks="$others" --exclude="${nodes[0]}" "$bin/ray" start --block \
    --address="$head_ip:$port" --num-cpus="$cpus" --disable-usage-stats
fi

wait_for_head() {
  for _ in $(seq 120); do
    if (exec 3<>"/dev/tcp/$head_ip/$port") 2>/dev/null; then return; fi
    kill -0 "${steps[0]}" 2>/dev/null || break
    sleep 1
  done
  echo "slurm: Ray does not listen on $head_ip:$port; its output is above" >&2
  exit 1
}
train=("$bin/python" -m launch.train "$@" "ray.address=$head_ip:$port" timeouts.placement_s=600)
if $dry_run; then
  echo "${train[*]}"
  exit 0
fi
wait_for_head
"${train[@]}" &
driver=$!
# A signal ends the first wait; the run then takes its time for the checkpoint.
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do
  code=0
  wait "$driver" || code=$?
done
exit "$code"
