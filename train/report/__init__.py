"""The run report: one self-contained HTML page made from what a run folder holds."""

from train.report.page import write_report

__all__ = ["write_report"]
