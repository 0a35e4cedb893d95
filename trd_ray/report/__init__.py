"""The HTML report of a run: one file that opens anywhere, without a server or a network."""

from trd_ray.report.build import write_report

__all__ = ["write_report"]
