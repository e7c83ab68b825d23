"""vLLM, the real one: it says what transformers says, token for token, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from configs.schema import InferenceConfig
from runtime.exits import BadInput
from tests.data_pipeline.test_text_to_code import END, VOCABULARY, save_model
from train.inference.engine import has_engine
from train.inference.vllm import child_environment

REPOSITORY = Path(__file__).resolve().parents[3]
VLLM = Path(sys.prefix) / "vllm"
"""Where install.sh puts what only this test needs, beside a torch for CPUs."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not VLLM.is_dir():
        pytest.skip("vLLM for CPUs goes with a torch for CPUs")
    if min(shutil.disk_usage("/dev/shm").free, psutil.virtual_memory().available / 8) < 1 << 30:
        pytest.skip("four processes of vLLM's ask for 8 GiB of memory, and their queues for 1 GiB of /dev/shm")
    folder = tmp_path_factory.mktemp("vllm")
    export, other = (save_model(folder / name, head=32) for name in ("export", "other"))  # its kernels have no smaller
    tensors = load_file(export / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    program = [sys.executable, str(Path(__file__).with_name("with_vllm.py")), str(export), str(other)]
    paths = os.pathsep.join([str(REPOSITORY), str(VLLM)])
    # Variables of torchrun's that would have vLLM join the ranks of a training.
    environment = {**os.environ, "PYTHONPATH": paths, "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    environment["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; of the whole machine's memory it would take most
    with (folder / "log").open("w") as log:
        ended = subprocess.run(program, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    assert ended.returncode == -signal.SIGKILL, (folder / "log").read_text()[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", ["codes", "text", "other"])
def test_it_says_what_transformers_says_as_likely(told: dict[str, Any], call: str) -> None:
    """Codes in their turns under Step-Audio's sampling; answers in text; and of new weights in the same engine."""
    said = told["said"][call]
    for (ids, log_probs), (wanted, as_likely) in zip(said["vllm"], said["transformers"], strict=True):
        assert ids == wanted
        assert log_probs == pytest.approx(as_likely, abs=1e-4)
    assert len({len(ids) for ids, _ in said["vllm"]}) > 2


def test_new_weights_say_something_else(told: dict[str, Any]) -> None:
    assert told["said"]["text"]["vllm"] != told["said"]["other"]["vllm"]


def test_codes_are_whole_groups_and_some_speech_ends(told: dict[str, Any]) -> None:
    said = [ids for ids, _ in told["said"]["codes"]["vllm"]]
    assert any(ids[-1] == END for ids in said)
    assert all(len(ids) % 5 == (ids[-1] == END) for ids in said)


def test_its_processes_end_with_the_rank_that_was_killed(told: dict[str, Any]) -> None:
    assert len(told["children"]) >= 3  # the engine, and a worker for each of two
    deadline = time.monotonic() + 20
    while alive := [pid for pid in told["children"] if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def test_of_neighbours_the_first_has_an_engine_on_the_gpus_of_all() -> None:
    assert [has_engine(InferenceConfig(tensor_parallel=4), rank) for rank in range(6)] == [
        True, False, False, False, True, False]  # fmt: skip
    ranks = {"RANK": "12", "LOCAL_RANK": "4", "TORCHELASTIC_RUN_ID": "x"}
    given = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,6,7", "HOME": "h", **ranks}
    found = child_environment(given, "cuda:4", 2)
    assert found["CUDA_VISIBLE_DEVICES"] == "6,7" and found["HOME"] == "h"
    assert not ranks.keys() & found.keys()
    with pytest.raises(BadInput, match=r"tensor_parallel=4: this process sees GPUs 0,1,2,3,6,7 and begins with .* 4"):
        child_environment(given, "cuda", 4)
    assert "CUDA_VISIBLE_DEVICES" not in child_environment({"RANK": "0"}, None, 1)  # where there is none


def test_where_it_is_not_installed_is_one_line(tmp_path: Path) -> None:
    from configs.schema import InferenceKind
    from train.inference.engine import open_engine

    engine = open_engine(
        InferenceConfig(engine=InferenceKind.vllm), rows=VOCABULARY.size, device="cpu", bf16=False, longest=9, batch=1
    )
    with pytest.raises(BadInput, match="vLLM is not installed here; pip install vllm"):
        engine.take(tmp_path)
