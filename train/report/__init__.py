"""Reports: self-contained HTML pages made from what run folders hold, one of a stage and one of a whole recipe."""

from train.report.page import write_report
from train.report.whole import write_whole_report

__all__ = ["write_report", "write_whole_report"]
