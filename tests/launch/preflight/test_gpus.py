"""What is read from nvidia-smi's XML and the kernel's log. No GPU is at hand: the texts have the drivers' elements."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.preflight import gpus

HEALTHY = """
<gpu id="00000000:19:00.0">
  <product_name>NVIDIA H100 80GB HBM3</product_name>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
    <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
  </clocks_event_reasons>
  <ecc_errors>
    <volatile>
      <sram_correctable>7</sram_correctable>
      <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
      <sram_uncorrectable_secded>0</sram_uncorrectable_secded>
      <dram_uncorrectable>0</dram_uncorrectable>
    </volatile>
    <aggregate><dram_uncorrectable>4</dram_uncorrectable></aggregate>
  </ecc_errors>
  <remapped_rows>
    <remapped_row_pending>No</remapped_row_pending>
    <remapped_row_failure>No</remapped_row_failure>
  </remapped_rows>
  <temperature><gpu_temp>61 C</gpu_temp></temperature>
  <gpu_recovery_action>None</gpu_recovery_action>
  <clocks><sm_clock>1980 MHz</sm_clock></clocks>
  <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
</gpu>
"""


def log_of(*found: str) -> str:
    return f"<nvidia_smi_log><driver_version>570.86.15</driver_version>{''.join(found)}</nvidia_smi_log>"


def test_healthy_gpus_have_clocks_and_no_troubles() -> None:
    report = gpus.read(log_of(HEALTHY, HEALTHY.replace("<clocks><sm_clock>1980", "<clocks><sm_clock>1755")))
    assert report.troubles == []
    assert report.facts == {"GPUs": "2 x NVIDIA H100 80GB HBM3", "driver": "570.86.15"}
    assert report.figures == {"gpu_clock": 1755.0}


@pytest.mark.parametrize(
    ("was", "now", "trouble"),
    [
        ("<dram_uncorrectable>0", "<dram_uncorrectable>2", "2 uncorrectable memory errors"),
        ("secded>0<", "secded>1<", "1 uncorrectable memory errors"),
        ("remapped_row_failure>No<", "remapped_row_failure>Yes<", "could not be remapped"),
        ("remapped_row_pending>No<", "remapped_row_pending>Yes<", "waits for a reset"),
        ("hw_slowdown>Not Active", "hw_slowdown>Active", "slowed down (hw_slowdown) at 61 C"),
        ("recovery_action>None", "recovery_action>GPU Reset", "the driver asks for: GPU Reset"),
    ],
)
def test_each_trouble_names_its_gpu(was: str, now: str, trouble: str) -> None:
    assert was in HEALTHY
    (found,) = gpus.read(log_of(HEALTHY, HEALTHY.replace(was, now))).troubles
    assert found.startswith("GPU 1: ")
    assert trouble in found


def test_older_drivers_say_throttle() -> None:
    old = HEALTHY.replace("clocks_event_reason", "clocks_throttle_reason").replace("hw_slowdown>Not ", "hw_slowdown>")
    assert gpus.read(log_of(old)).troubles == ["GPU 0: slowed down (hw_slowdown) at 61 C"]


def test_a_gpu_that_tells_nothing_is_not_judged() -> None:
    assert gpus.read(log_of("<gpu><ecc_errors><volatile><x>N/A</x></volatile></ecc_errors></gpu>")).troubles == []
    assert gpus.read("nonsense").troubles[0].startswith("nvidia-smi: unreadable")


def test_xids_by_what_they_mean_and_when() -> None:
    lines = [
        "4,901,1000000,-;NVRM: Xid (PCI:0000:19:00): 79, pid=1, GPU has fallen off the bus.",
        "4,902,90000000000,-;NVRM: Xid (PCI:0000:19:00): 79, pid=1, GPU has fallen off the bus.",
        "4,903,90000000000,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=7, MMU fault",
        "6,904,90000000000,-;something else",
    ]
    report = gpus.xids("\n".join(lines), now=90_000 + 3600.0)
    assert report.troubles == ["Xid 79 of GPU 0000:19:00, 1.0 h ago"]
    assert report.notes == ["Xid 31 of GPU 0000:3b:00, 1.0 h ago"]


@pytest.mark.parametrize(
    ("script", "trouble"),
    [("echo lost >&2; exit 9", None), (f"cat <<'E'\n{log_of(HEALTHY)}\nE", None), ("echo '<x'", "unreadable")],
)
def test_the_tool_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, trouble: str | None) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = gpus.health()
    assert bool(found.troubles) is (trouble is not None)
    if trouble:
        assert trouble in found.troubles[0]


def test_a_machine_without_gpus_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = gpus.health()
    assert (report.troubles, report.facts) == ([], {"GPUs": "none"})
    assert report.notes == ["no GPUs: there is no nvidia-smi"]
