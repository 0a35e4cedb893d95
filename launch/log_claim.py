"""The log of a run's buffer before the run: whose it is, and what is taken out of it on resume."""

from __future__ import annotations

import logging

from trd_ray.buffer_log import BufferLog, run_log
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import brief
from trd_ray.run_folder import RunFolder

log = logging.getLogger(__name__)


def claim_log(config: TrdConfig) -> None:
    """For a new run, if it keeps a log. Raises `ConfigError` if another run's is there already."""
    if not config.pipeline.log_targets:
        return
    folder = RunFolder(config.run.dir)
    buffer_log = run_log(config.pipeline, folder)
    buffer_log.require_empty()
    if config.pipeline.log_url:  # one in the run folder is the run's
        buffer_log.claim(folder.path)


def rewind_log(config: TrdConfig, folder: RunFolder, last_step: int) -> None:
    """Take the segments after `last_step` out of the log of a run that is resumed.

    Without `pipeline.log_targets` what cannot be taken out stays, with a warning: the log's place may be what
    failed. Otherwise raises `ConfigError` if the log is another run's, and as `BufferLog.rewind`.
    """
    if config.pipeline.log_targets:
        buffer_log = run_log(config.pipeline, folder)
        if config.pipeline.log_url:
            if not _is_own(config, folder, buffer_log):
                buffer_log.require_empty()
            buffer_log.claim(folder.path)
        buffer_log.rewind(last_step)
        return
    try:
        buffer_log = run_log(config.pipeline, folder)
        if _is_own(config, folder, buffer_log):
            buffer_log.rewind(last_step)
        elif buffer_log.steps():
            log.warning("%s holds another run, and is left as it is", buffer_log.url)
    except Exception as error:  # noqa: BLE001 - a file system of fsspec raises what it likes
        log.warning("what the buffer's log holds after step %d stays there: %s", last_step, brief(error))


def _is_own(config: TrdConfig, folder: RunFolder, buffer_log: BufferLog) -> bool:
    """Whether the segments that are there are this run's: one that kept a log has claimed it, unless that was
    before logs were claimed."""
    if not config.pipeline.log_url:
        return True
    owner = buffer_log.owner()
    if not owner:
        return load_config(folder.config).pipeline.log_targets
    return owner == str(folder.path.resolve())
