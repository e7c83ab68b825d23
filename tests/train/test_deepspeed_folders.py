"""DeepSpeed's own checkpoints and tools: what our engine saves they read, and what they write we read, bit for bit.

References are DeepSpeed's own code and the native checkpoint of the same step, which the engine gathers by itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.conversion.reading import open_slabs
from checkpoints.formats.huggingface import HuggingFaceReader
from checkpoints.formats.source import Format, detect, open_source
from checkpoints.formats.stacking import NativeSource
from checkpoints.inspect import verify
from checkpoints.maps import of_config
from checkpoints.training_state import export_universal, import_training_state
from configs.checks import check
from launch.cli import main
from runtime.exits import BAD_INPUT, BadInput
from tests.checkpoints.disks import small_disk
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.deepspeed_folders import same, stage_and_tools, stage_from_universal, train_transformers
from tests.train.runs import run_config, tiny_config
from tests.train.test_checkpointing import heard_stage
from tests.train.test_resume import write

ZERO3 = {"engine__zero_stage": 3, "engine__deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "ZeRO-1 TP2 x DP2": (4, {"engine__zero_stage": 1, "parallel__tensor": 2}),
    "ZeRO-1 bf16": (1, {"engine__zero_stage": 1, "train__precision": "bf16"}),
    "ZeRO-2 LoRA": (2, {"engine__zero_stage": 2, "stage__lora": {"rank": 4}}),
    "ZeRO-3 bf16": (2, {**ZERO3, "train__precision": "bf16"}),
    "pipeline PP2 x TP2": (4, {"engine__zero_stage": 1, "parallel__pipeline": 2, "parallel__tensor": 2}),
}
NO_FP32 = ("ZeRO-1 TP2 x DP2", "pipeline PP2 x TP2")  # DeepSpeed's zero_to_fp32 reads neither


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_deepspeed_reads_ours_and_we_read_theirs(topology: str, corpus: Path, tmp_path: Path) -> None:
    processes, changes = TOPOLOGIES[topology]
    run = tmp_path / "run"
    settings = {"train__steps": 2, "engine__name": "deepspeed", "checkpoint__deepspeed": True, **changes}
    run_config(tiny_config(run, corpus, **settings), processes, program=stage_and_tools)
    native = NativeSource(run / "checkpoints/step-00000002")
    same(native, open_source(run / "deepspeed"))

    if topology not in NO_FP32:
        for out, kind in (("fp32-safetensors", Format.safetensors), ("fp32-torch", Format.torch_file)):
            assert detect(run / out)[0] is kind
            theirs = open_source(run / out)
            trained = "fp32_param" if "fp32_param" in native.kinds else None
            for name in theirs.names:
                master = native.state(trained, name) if trained else native.read(name)
                assert torch.equal(theirs.read(name), master), name
            assert native.state_names("exp_avg") <= theirs.names

    universal = run / "universal"
    assert detect(universal)[0] is Format.deepspeed_universal
    same(native, open_source(universal))
    again = import_training_state(universal, tmp_path / "native", like=native.folder)
    assert verify(again) == []
    same(native, NativeSource(again))
    common = torch.load(again / "tensors/common.pt", weights_only=True)
    assert common == torch.load(native.folder / "tensors/common.pt", weights_only=True)
    same(native, open_source(export_universal(native.folder, tmp_path / "ours")))


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Four steps of one process under Megatron, a checkpoint at the second; the losses of the last two."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    settings = {"train__steps": 4, "checkpoint__every": 2, "checkpoint__keep": 0}
    lines = run_config(tiny_config(folder, corpus, **settings), 1)
    return folder / "checkpoints/step-00000002", [line["loss"] for line in lines[2:]]


@pytest.mark.parametrize(("processes", "changes"), [(2, {"engine__zero_stage": 2, "parallel__tensor": 2}), (2, ZERO3)])
def test_deepspeed_goes_on_from_a_universal_folder_of_ours(
    processes: int,
    changes: dict[str, Any],
    uninterrupted: tuple[Path, list[float]],
    corpus: Path,
    tmp_path: Path,
) -> None:
    checkpoint, expected = uninterrupted
    shutil.copytree(checkpoint, tmp_path / "run/checkpoints" / checkpoint.name)  # for the loader's place alone
    export_universal(checkpoint, tmp_path / "run/universal")
    settings = {"train__steps": 4, "engine__name": "deepspeed", **changes}
    config = tiny_config(tmp_path / "run", corpus, **settings)
    losses = [line["loss"] for line in run_config(config, processes, program=stage_from_universal)]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_run_goes_on_from_what_deepspeed_wrote(
    uninterrupted: tuple[Path, list[float]], corpus: Path, tmp_path: Path
) -> None:
    """ZeRO-2 saves at step 2; Megatron's pipeline goes on from DeepSpeed's folder of that."""
    settings = {"train__steps": 4, "checkpoint__every": 2, "checkpoint__keep": 0}
    own = {"engine__name": "deepspeed", "engine__zero_stage": 2, "checkpoint__deepspeed": True}
    run_config(tiny_config(tmp_path / "first", corpus, **settings, **own), 1)
    checkpoint = tmp_path / "second/checkpoints/step-00000002"
    checkpoint.parent.mkdir(parents=True)
    folder, like = tmp_path / "first/deepspeed/global_step2", tmp_path / "first/checkpoints/step-00000002"
    arguments = ["checkpoint", "from-deepspeed", str(folder), "--out", str(checkpoint), "--like", str(like)]
    assert main(arguments) == 0
    lines = run_config(tiny_config(tmp_path / "second", corpus, **settings, parallel__pipeline=2), 2)
    assert [line["loss"] for line in lines] == pytest.approx(uninterrupted[1], rel=1e-6)
    assert [line["step"] for line in lines] == [3, 4]


def test_a_transformers_model_under_zero_3(tmp_path: Path) -> None:
    """Names and shapes that are not ours, rows that two ranks cannot share evenly."""
    run_ranks(train_transformers, 2, str(tmp_path))
    source = open_source(tmp_path / "deepspeed")
    model = HuggingFaceReader(tmp_path / "hf")
    assert source.names == model.names
    for name in sorted(model.names):
        assert torch.equal(source.read(name), model.read(name)), name
    backbone = of_config(model.config).read_config(model.config)
    theirs, ours = (open_slabs(tmp_path / place, backbone) for place in ("hf", "deepspeed"))
    assert ours.left_out() == []
    for rule in theirs.rules:
        layer = 0 if rule.layered else None
        pairs = zip(theirs.read(rule, layer), ours.read(rule, layer), strict=True)
        assert all(torch.equal(one.held.tensor(), other.held.tensor()) for one, other in pairs), rule.native
    with pytest.raises(BadInput, match="its names are not Megatron's"):
        import_training_state(tmp_path / "deepspeed", tmp_path / "native")


def test_own_folders_are_kept_as_long_as_checkpoints(corpus: Path, tmp_path: Path) -> None:
    settings = {"train__steps": 3, "checkpoint__every": 1, "checkpoint__keep": 2, "checkpoint__asynchronous": True}
    saved_at = {"engine__name": "deepspeed", "checkpoint__deepspeed": True}
    run_config(tiny_config(tmp_path / "run", corpus, **settings, **saved_at), 1)
    assert sorted(path.name for path in (tmp_path / "run/deepspeed").iterdir()) == [
        "global_step2",
        "global_step3",
        "latest",
        "zero_to_fp32.py",
    ]
    assert (tmp_path / "run/deepspeed/latest").read_text() == "global_step3"


def test_a_full_disk_stops_all_ranks_with_one_line(corpus: Path, tmp_path: Path) -> None:
    """DeepSpeed's saving waits for all ranks in the end, those too that could not write."""
    settings = {"train__steps": 2, "checkpoint__every": 1, "checkpoint__failures": 1}
    own = {"engine__name": "deepspeed", "checkpoint__deepspeed": True}
    heard = tiny_config(tmp_path / "run", corpus, **settings, **own)
    config = write(heard)
    with small_disk(tmp_path / "run/deepspeed", 200_000) as mounted:
        if mounted:
            assert run_ranks(heard_stage, 2, config, timeout=60) == [BAD_INPUT, BAD_INPUT]
            told = (tmp_path / "run/said").read_text()  # whole: two ranks' lines may come to stand in one
            assert told.count("cannot save DeepSpeed's own checkpoint: No space left on device") == 3
            assert list((tmp_path / "run/deepspeed").glob("global_step?")) == []
            assert verify(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "checkpoint.deepspeed is for engine.name=deepspeed"),
        ({"engine__name": "deepspeed", "engine__zero_stage": 0}, "engine.zero_stage=0"),
    ],
)
def test_where_there_is_no_own_form(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        check(tiny_config(tmp_path, tmp_path, checkpoint__deepspeed=True, **changes))
