#!/usr/bin/env bash
# A Ray cluster on machines that are reached by ssh, without a scheduler; two of them here:
#
#   on the first    launch/cluster/bare_metal.sh head 10.0.0.1
#                   scp ~/.ray/auth_token 10.0.0.2:.ray/            (once)
#   on the second   launch/cluster/bare_metal.sh join 10.0.0.1 10.0.0.2
#   on the first    trd-ray submit CONFIG run.dir=/shared/runs/first --address http://127.0.0.1:8265
#   on both         launch/cluster/bare_metal.sh stop               ends all of this user's Ray there
#
# The address is the one by which the nodes reach each other; a node with several has several. The dashboard listens on
# loopback: from elsewhere, ssh -L 8265:127.0.0.1:8265. With --dry-run first, it prints what it would do.
#
# Both machines have the same trd-ray in the same place, and see run.dir and the models under the same paths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=${TRD_RAY_BIN:-.venv/bin}
port=${TRD_RAY_PORT:-6379}
dashboard_port=${TRD_RAY_DASHBOARD_PORT:-8265}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

usage() {
  echo "bare_metal: usage: bare_metal.sh [--dry-run] head IP | join HEAD_IP IP | stop" >&2
  exit 2
}
dry_run=false
if [ "${1:-}" = --dry-run ]; then
  dry_run=true
  shift
fi
run() {
  if $dry_run; then echo "$*"; else "$@"; fi
}
make_token() {
  if [ -s "$token" ]; then return; fi
  # It prints the token, which is no one's business.
  if $dry_run; then echo "$bin/ray get-auth-token --generate >/dev/null"; else "$bin/ray" get-auth-token --generate >/dev/null; fi
}
require_token() {
  if [ -s "$token" ] || [ -n "${RAY_AUTH_TOKEN:-}" ]; then return; fi
  echo "bare_metal: no token in $token; copy the file from the first machine" >&2
  if ! $dry_run; then exit 2; fi
}

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONPATH="$PWD"
case "${1:-}" in
  head)
    [ $# -eq 2 ] || usage
    make_token
    run "$bin/ray" start --head --node-ip-address="$2" --port="$port" --dashboard-host=127.0.0.1 \
      --dashboard-port="$dashboard_port"
    ;;
  join)
    [ $# -eq 3 ] || usage
    require_token
    run "$bin/ray" start --address="$2:$port" --node-ip-address="$3"
    ;;
  stop)
    [ $# -eq 1 ] || usage
    run "$bin/ray" stop
    ;;
  *) usage ;;
esac
