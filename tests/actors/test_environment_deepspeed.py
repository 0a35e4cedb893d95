"""What a learner's process imports with DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from actors.environment_deepspeed import absent

pytest.importorskip("deepspeed")
pytest.importorskip("mlflow")


def test_deepspeed_comes_without_mlflow_which_can_be_imported_afterwards() -> None:
    program = """
import json, sys
from actors.environment_deepspeed import import_deepspeed
version = import_deepspeed().__version__
before = "mlflow" in sys.modules
import mlflow
print(json.dumps([version, before, mlflow.__version__]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    version, was_loaded, mlflow_version = json.loads(done.stdout.splitlines()[-1])
    assert version and mlflow_version
    assert not was_loaded


def test_what_is_loaded_already_stays() -> None:
    with absent("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json
