#!/usr/bin/env bash
# Make .venv and install the CPU stack into it, once. A second run starts in seconds: a stamp holds
# the checksum of what was installed. Usage: launch/setup.sh [cpu] [dev] [smollm2] [trackers]   (default: cpu)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_command() {
  local candidate
  for candidate in "${TRD_RAY_PYTHON:-}" python3 python3.11 python3.12 python3.13; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: Python 3.11, 3.12 or 3.13 is needed. Install one, or name it in TRD_RAY_PYTHON." >&2
  exit 2
}

# The local pip may know a CPU build of torch (a mirror, a wheel folder); PyTorch's own CPU index
# is asked only if it does not.
install_torch() {
  local torch
  torch=$(grep '^torch==' launch/requirements/cpu.txt)
  .venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps "$torch" 2>/dev/null ||
    .venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
}

install_part() {
  local part=$1 file="launch/requirements/$1.txt" stamp=".venv/.installed-$1" sum
  [ -f "$file" ] || { echo "setup: unknown part '$part'; expected cpu, dev, smollm2 or trackers" >&2; exit 2; }
  sum=$(sha256sum "$file" | cut -d' ' -f1)
  [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return
  echo "setup: installing $part (once; a few minutes for cpu) ..."
  if [ "$part" = cpu ]; then install_torch; fi
  .venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps -r "$file"
  echo "$sum" >"$stamp"
  is_compiled=no
}

# With all cores, where pip would use one. Of files that are no Python of this version pip says nothing either.
compile_packages() {
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
}

# The browser tests open the report in Debian's chromium; playwright's own download is not used.
install_chromium() {
  if command -v chromium >/dev/null 2>&1; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "setup: installing chromium (once) ..."
    if apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; then
      return
    fi
  fi
  echo "setup: the browser tests need 'chromium' on the PATH, and it could not be installed here." >&2
  echo "setup: install it as root (apt-get install chromium), then run this again." >&2
  exit 2
}

install_project() {
  local stamp=.venv/.installed-project sum
  sum=$(sha256sum pyproject.toml | cut -d' ' -f1)
  [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
  echo "$sum" >"$stamp"
}

if [ ! -x .venv/bin/pip ]; then
  python=$(python_command) || exit 2
  # Debian's Python comes without ensurepip unless python3-venv is installed; pip itself can help.
  "$python" -m venv .venv 2>/dev/null || {
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet pip
  }
fi
is_compiled=yes
for part in "${@:-cpu}"; do
  install_part "$part"
  if [ "$part" = dev ]; then install_chromium; fi
done
install_project
if [ "$is_compiled" = no ]; then compile_packages; fi
