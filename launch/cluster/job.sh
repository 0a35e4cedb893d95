#!/bin/sh
# Entrypoint of a job of `trd-ray submit`: one run, with the Python that Ray runs with on this node. The
# `python` of the PATH may be another one, or none. Usage, in the job's working directory: job.sh CONFIG [--resume]
set -eu

# The process that started this one is Ray's. Its libraries lie beside its interpreter, unless Ray is installed
# elsewhere than in that interpreter's own folder.
ray_python() {
  libraries="/proc/$PPID/maps"
  [ -r "$libraries" ] || return 0
  prefix=$(sed -n 's|^[^/]*\(/.*\)/lib[^/]*/python3[^/]*/[^/]*/ray/_raylet\.so$|\1|p' "$libraries" | head -n 1)
  if [ -n "$prefix" ] && [ -x "$prefix/bin/python3" ]; then
    echo "$prefix/bin/python3"
  else
    readlink "/proc/$PPID/exe"
  fi
}

has_ray='import importlib.util, sys; sys.exit(importlib.util.find_spec("ray") is None)'
python=${TRD_RAY_PYTHON:-$(ray_python)}
if [ -z "$python" ] || ! "$python" -c "$has_ray" 2>/dev/null; then
  echo "job: '$python' is no Python with Ray; name the cluster's with --python PATH" >&2
  exit 2
fi
echo "job: $python on $(hostname)"
# Lines are not read on a terminal here.
export COLUMNS="${COLUMNS:-160}"
exec "$python" -m launch.train "$@"
