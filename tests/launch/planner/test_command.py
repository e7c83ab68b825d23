"""`megaphone plan` on the command line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.selection import read_words

ROOT = Path(__file__).resolve().parents[3]
STEP_AUDIO = ["plan", "recipe=step_audio", "scale=paper", "stage=cooldown"]
LLAMA = ["plan", "backbone=llama3_1_8b", "corpus.vocabulary_rows=128256", "train.global_batch=64", "loader.lanes=64"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_table_and_where_the_first_ones_step_goes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *STEP_AUDIO, "--gpus", "512", "--gpu", "h800", "--top", "3", "--explain")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("step_audio_chat_130b, stage cooldown: 105,977 steps of 1,024 rows of 8,192 tokens")
    table = lines[lines.index("") + 1 :]
    assert table[0].split()[:4] == ["#", "step", "s", "MFU"]
    assert all("TP" in line for line in table[1:4])
    parts = next(number for number, line in enumerate(lines) if line.split()[:2] == ["#", "weights"])
    for number, line in enumerate(table[1:4], 1):
        whole = float(re.search(r" (\d+\.\d)  TP", line)[1])  # type: ignore[index]
        assert sum(map(float, lines[parts + number].split()[1:-1])) == pytest.approx(whole, abs=0.1)
    shares = [float(line.split("%")[0]) for line in lines if line.startswith("  ") and line.count(" s  ")]
    assert sum(shares) == pytest.approx(100, abs=0.6)


def test_its_settings_make_the_topology_that_was_planned(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *STEP_AUDIO, "--gpus", "1024", "--gpu", "h100", "--json")
    assert code == 0
    best = json.loads(out)[0]
    config = read_words([*STEP_AUDIO[1:], *shlex.split(best["settings"])]).one()
    parallel = config.parallel
    said = f"TP {parallel.tensor} PP {parallel.pipeline} VPP {parallel.virtual_pipeline}"
    assert best["topology"].startswith(said)
    assert set(best["memory"]) > {"weights", "gradients", "optimizer", "activations", "logits", "encoder", "heads"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*LLAMA, "--gpus", "8", "--gpu", "h101"], "--gpu h101: not known; did you mean h100?"),
        ([*STEP_AUDIO, "--gpus", "32", "--gpu", "h100"], "GiB a GPU; 64 would do, as TP"),
        ([*LLAMA, "--gpus", "37", "--gpu", "h100"], "no topology of 37 GPUs can be trained; 36 can"),
        (["plan", "backbone=llama3_1_8b", "--gpus", "8", "--gpu", "h100"], "corpus.vocabulary_rows="),
        ([*LLAMA, "--gpus", "8", "--gpu", "h100", "--encoder", "layers=2,wide=3"], "--encoder: wide is not one of"),
        ([*LLAMA, "--gpus", "8", "--gpu", "h100", "--heads", "layers=2"], "--heads needs hidden, ffn, codebooks, rows"),
        ([*LLAMA, "--gpus", "8", "--gpu", "h100", "--headroom", "1.5"], "--headroom 1.5"),
    ],
)
def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


def test_it_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from launch.cli import main; "
        f"code = main({[*LLAMA, '--gpus', '8', '--gpu', 'h100']!r}); "
        "assert not {'torch', 'numpy', 'megatron'} & set(sys.modules), sorted(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
