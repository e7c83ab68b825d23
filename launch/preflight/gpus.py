"""Health of a node's GPUs, as `nvidia-smi -q -x` tells it, and Xid errors of the kernel's log where it may be read.

Names of elements are those of drivers 450 to 615, of which those before 535 say "throttle" for "event".
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from xml.etree import ElementTree

from launch.preflight.node import Report

_PATIENCE = 30.0  # seconds; a driver that does not answer in this time is sick
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
# Uncorrectable memory error, remapping failed, fallen off the bus, uncontained error: the GPU needs a reset or a
# replacement (docs.nvidia.com/deploy/xid-errors). Others may be the fault of a program.
_FATAL_XIDS = frozenset({48, 64, 79, 95})
_RECENT = 24 * 3600.0  # seconds


def health() -> Report:
    """Clock, troubles and facts of the node's GPUs; a note where there are none."""
    try:
        said = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=_PATIENCE)
    except FileNotFoundError:
        return Report(facts={"GPUs": "none"}, notes=["no GPUs: there is no nvidia-smi"])
    except subprocess.TimeoutExpired:
        return Report(troubles=[f"nvidia-smi has not answered in {_PATIENCE:g} s"])
    if said.returncode:
        problem = " ".join((said.stderr or said.stdout).split())
        if not os.path.exists("/proc/driver/nvidia"):
            return Report(facts={"GPUs": "none"}, notes=[f"no GPUs: {problem}"])
        return Report(troubles=[f"nvidia-smi: {problem}"])
    report = read(said.stdout)
    report.take(xids(_kernel_log(), time.clock_gettime(time.CLOCK_MONOTONIC)))
    return report


def read(xml: str) -> Report:
    """What nvidia-smi's XML says; an element that is not there is not judged."""
    try:
        log = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        return Report(troubles=[f"nvidia-smi: unreadable ({error})"])
    report = Report()
    found = log.findall("gpu")
    names = Counter(gpu.findtext("product_name", "unknown") for gpu in found)
    report.facts["GPUs"] = ", ".join(f"{count} x {name}" for name, count in sorted(names.items())) or "none"
    report.facts["driver"] = log.findtext("driver_version", "unknown")
    for number, gpu in enumerate(found):
        report.troubles += [f"GPU {number}: {trouble}" for trouble in _troubles(gpu)]
    clocks = [_count(gpu.findtext("clocks/sm_clock", "").partition(" ")[0]) for gpu in found]
    if lowest := min(clocks, default=0):
        report.figures["gpu_clock"] = float(lowest)
    return report


def xids(log: str, now: float) -> Report:
    """Xid errors of the last day in a kernel log as /dev/kmsg has it; now: seconds on the kernel's clock."""
    report = Report()
    for line in log.splitlines():
        found = _XID.search(line)
        stamp = line.partition(";")[0].split(",")
        if not found or len(stamp) < 3 or not stamp[2].isdigit():
            continue
        hours = (now - int(stamp[2]) / 1e6) / 3600
        said = f"Xid {found[2]} of GPU {found[1]}, {hours:.1f} h ago"
        if hours * 3600 <= _RECENT:
            (report.troubles if int(found[2]) in _FATAL_XIDS else report.notes).append(said)
    return report


def _troubles(gpu: ElementTree.Element) -> list[str]:
    found = []
    volatile = gpu.findall("ecc_errors/volatile/*")
    if errors := sum(_count(part.text) for part in volatile if "uncorrectable" in part.tag):
        found.append(f"{errors} uncorrectable memory errors since the driver was loaded")
    for tag, problem in (
        ("remapped_rows/remapped_row_failure", "a row of its memory could not be remapped"),
        ("remapped_rows/remapped_row_pending", "a row of its memory waits for a reset to be remapped"),
        ("retired_pages/pending_retirement", "a page of its memory waits for a reset to be retired"),
    ):
        if gpu.findtext(tag) == "Yes":
            found.append(problem)
    for kind in ("event", "throttle"):
        for reason in _SLOWDOWNS:
            if gpu.findtext(f"clocks_{kind}_reasons/clocks_{kind}_reason_{reason}") == "Active":
                found.append(f"slowed down ({reason}) at {gpu.findtext('temperature/gpu_temp', '?')}")
    action = gpu.findtext("gpu_recovery_action", "None")
    if action not in ("None", "N/A"):
        found.append(f"the driver asks for: {action}")
    return found


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdigit() else 0


def _kernel_log() -> str:
    """The kernel's log; nothing where this user may not read it."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    records = []
    try:
        while True:
            try:
                records.append(os.read(log, 8192).decode("utf-8", "replace").partition("\n")[0])
            except BrokenPipeError:
                continue  # overwritten while it was read; the next one is there
            except OSError:  # BlockingIOError at its end
                return "\n".join(records)
    finally:
        os.close(log)
