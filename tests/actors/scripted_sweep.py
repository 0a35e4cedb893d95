"""A sweep of scripted trials as a process of its own: `python -m tests.actors.scripted_sweep FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.sweep.run import run_sweep
from trd_ray.sweep.spec import load_sweep

TRIAL = (sys.executable, "-m", "tests.actors.scripted_trial")

if __name__ == "__main__":
    sys.exit(run_sweep(load_sweep(Path(sys.argv[1])), resume=False, command=TRIAL))
