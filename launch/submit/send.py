"""`trd-ray submit CONFIG`: check, pack, send, follow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.consoles import show
from launch.submit.checks import Checked, check_submission
from launch.submit.cluster import Cluster
from launch.submit.commands import follow_job, tell
from launch.submit.job import JOB_CONFIG, DriverOptions, JobRequest, job_request
from launch.submit.package import MIB, PackingList, packing_list, require_folder, write_package
from trd_ray.config_loader import dump_config, load_config

_MOST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the user asked for."""

    config: Path
    overrides: Sequence[str]
    folder: Path
    excludes: Sequence[str]
    driver: DriverOptions


def submit(submission: Submission, address: str, *, wait: bool, dry_run: bool) -> int:
    """Check, pack, send, follow. Raises what the checks and `Cluster` raise."""
    require_folder(submission.folder)
    config = load_config(submission.config, submission.overrides)
    checked = check_submission(config, submission.folder)
    packing = packing_list(submission.folder, needed=checked.needed, excludes=submission.excludes)
    request = job_request(
        checked.config, submission.driver, config_name=submission.config.stem, folder=submission.folder
    )
    tell(f"run folder, on the cluster   {checked.config.run.dir}")
    tell(f"package                      {_packing_words(packing)}")
    for option in checked.unchecked:
        tell(f"checked when the job starts  {option}")
    if dry_run:
        _show_plan(checked, packing, request)
        return 0
    cluster = Cluster(address)
    cluster.check()
    with tempfile.TemporaryDirectory(prefix="trd-ray-submit-") as folder:
        package = Path(folder) / "package.zip"
        write_package(packing, {JOB_CONFIG: dump_config(checked.config)}, package)
        job_id = cluster.submit(request, package)
    tell(f"job                          {job_id}")
    if not wait:
        show(job_id)
        tell(f"follow it with  trd-ray submit logs {job_id} --follow --address {address}")
        return 0
    return follow_job(cluster, job_id)


def _packing_words(packing: PackingList) -> str:
    own = ", trd-ray's own packages among them" if packing.own_packages else ""
    return (
        f"{len(packing.files)} files, {packing.num_bytes / MIB:,.1f} MiB{own}; "
        f"{len(packing.left_out)} files and folders left out"
    )


def _show_plan(checked: Checked, packing: PackingList, request: JobRequest) -> None:
    show(dump_config(checked.config))
    show(f"entrypoint: {request.entrypoint}")
    show("metadata: " + ", ".join(f"{key}={value}" for key, value in request.metadata.items()))
    for file in sorted(packing.files, key=lambda f: -f.num_bytes)[:_MOST_SHOWN]:
        show(f"sent      {file.num_bytes / MIB:8.2f} MiB  {file.name}")
    for left in packing.left_out:
        show(f"left out  {left.name}: {left.reason}")
