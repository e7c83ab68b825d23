"""What lies where in a run folder: names on which those who write and those who read agree."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
STARTS_FILE = "starts.jsonl"
RESULTS_FILE = "results.json"  # written when a stage ends
MEASURED, SOUNDS = "measured", "sounds"  # keys of it: figures by name, and files by what is said in them
FUNNEL = "funnel"  # another: what a filter would leave of what was made
REPORT_FILE = "report.html"
EXPORT = Path("export") / "hf"
AUDIO_EXPORT = Path("export") / "audio_input"
EXPORT_CHECK = Path("export") / "check.json"
MADE = "corpus"  # what a stage of kind generate makes
