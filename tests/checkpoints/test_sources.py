"""Finding out a path's format; plain files, files that are not to be trusted, and DeepSpeed's folders made by hand."""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoints.formats.source import Format, TrainedSource, detect, open_source
from checkpoints.formats.stacking import parts
from checkpoints.formats.torch_files import Inert, fields, load
from runtime.exits import BadInput
from tests.checkpoints.legacy import beside

# --- DeepSpeed's folders by hand; tests/train/test_deepspeed_folders.py has real ones --------------------------------

FC2 = "decoder.layers.0.mlp.linear_fc2.weight"


def write_zero(folder: Path, info: dict[str, Any] | None, start: int = 0) -> Path:
    """Two tensor-parallel ranks of one data-parallel rank, each with half of one matrix's columns."""
    for rank in range(2):
        weight = torch.arange(6.0).view(2, 3) + 10 * rank
        common = {"param_shapes": [{FC2: weight.shape}], "buffer_names": [], "universal_checkpoint_info": info}
        torch.save({"module": {FC2: weight}, **common}, folder / f"mp_rank_{rank:02d}_model_states.pt")
        flat = weight.flatten()
        optimizer = {
            "zero_stage": 1,
            "partition_count": [1],
            "base_optimizer_state": {
                "state": {0: {"step": torch.tensor(4.0), "exp_avg": flat + 1, "exp_avg_sq": flat + 2}},
                "param_groups": [],
            },
            "single_partition_of_fp32_groups": [flat],
            "param_slice_mappings": [{FC2: argparse.Namespace(numel=6, start=start)}],  # an object, as DeepSpeed's is
        }
        name = f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer}, folder / name)
    return folder


COLUMNS = {"parameter_with_row_parallelism_patterns": [r".*linear_fc2\.weight$"]}


def test_deepspeed_says_how_ranks_share_a_parameter(tmp_path: Path) -> None:
    source = open_source(write_zero(tmp_path, COLUMNS))
    whole = torch.tensor([[0.0, 1, 2, 10, 11, 12], [3, 4, 5, 13, 14, 15]])
    assert source.shape_and_dtype(FC2) == ((2, 6), torch.float32)
    assert torch.equal(source.read(FC2), whole)
    assert isinstance(source, TrainedSource)
    assert (source.step, source.kinds) == (4, ("exp_avg", "exp_avg_sq"))
    assert torch.equal(source.state("exp_avg_sq", FC2), whole + 2)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (None, f"2 tensor-parallel ranks share {FC2}, and nothing in it says how"),
        ({"parameter_to_average_patterns": ["(.*)*x"]}, "its pattern .* is refused"),
        ({"parameter_with_sub_params": [{"patterns": [".*"]}]}, "which is not read"),
        ({"parameter_with_row_parallelism_patterns": ["["]}, r"its pattern '\[' is refused"),
    ],
)
def test_deepspeed_folders_that_are_refused(info: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        open_source(write_zero(tmp_path, info))


def test_deepspeed_folders_with_parts_missing(tmp_path: Path) -> None:
    source = open_source(write_zero(tmp_path, COLUMNS, start=3))
    assert isinstance(source, TrainedSource)
    with pytest.raises(BadInput, match="damaged, or no DeepSpeed checkpoint"):
        source.state("exp_avg", FC2)
    (tmp_path / "zero_pp_rank_0_mp_rank_01_optim_states.pt").unlink()
    with pytest.raises(BadInput, match=r"no zero_pp_rank_0_mp_rank_01_optim_states\.pt \(1 such files missing of 2\)"):
        open_source(tmp_path)


def test_a_frozen_part_in_a_universal_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero" / FC2).mkdir(parents=True)
    torch.save({"param": torch.zeros(2, 3)}, tmp_path / "zero" / FC2 / "fp32.pt")
    for tensor_parallel in (1, 2):
        dimensions = {"checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": tensor_parallel}}
        torch.save(dimensions, tmp_path / "mp_rank_00_model_states.pt")
        if tensor_parallel == 1:
            assert open_source(tmp_path).shape_and_dtype(FC2) == ((2, 3), torch.float32)
    with pytest.raises(BadInput, match=f"{FC2} was frozen"):
        open_source(tmp_path)


# --- formats and plain files ------------------------------------------------------------------------------------------


def test_what_a_path_holds_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        detect(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds nothing; readable are"):
        detect(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds weights\.h5; readable are"):
        detect(tmp_path)
    with pytest.raises(BadInput, match=r"weights\.h5: not a checkpoint that is read"):
        detect(tmp_path / "weights.h5")
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(BadInput, match=r"names '\.\./elsewhere', which is no folder beside it"):
        detect(tmp_path)


@pytest.mark.parametrize("nested", [None, "state_dict", "module"])
def test_plain_files(nested: str | None, tmp_path: Path) -> None:
    tensors = {"decoder.layers.0.input_layernorm.weight": torch.randn(4), "model.embed_tokens.weight": torch.eye(3)}
    save_file(tensors, tmp_path / "all.safetensors")
    torch.save({nested: tensors, "epoch": 3} if nested else tensors, tmp_path / "pytorch_model.bin")
    torch.save({"optimizer": {}}, tmp_path / "training.pt")
    for path, kind in (
        (tmp_path / "all.safetensors", Format.safetensors),
        (tmp_path / "pytorch_model.bin", Format.torch_file),
    ):
        assert detect(path) == (kind, path)
        source = open_source(path)
        norm = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
        assert source.names == {norm, "model.embed_tokens.weight"}
        assert source.shape_and_dtype(norm) == ((4,), torch.float32)
        assert torch.equal(source.read(norm), tensors["decoder.layers.0.input_layernorm.weight"])
        with pytest.raises(BadInput, match="has no tensor other"):
            source.read("other")
    (tmp_path / "all.safetensors").unlink()
    assert detect(tmp_path) == (Format.torch_file, tmp_path)
    assert open_source(tmp_path).names == {norm, "model.embed_tokens.weight"}


def test_layers_have_to_be_there_and_alike(tmp_path: Path) -> None:
    weight = "decoder.layers.{}.mlp.linear_fc2.weight"
    for shapes, words in (({0: 3, 2: 3}, "layer 1 of 3 has none"), ({0: 3, 1: 4}, "layers have to be alike")):
        save_file(
            {weight.format(layer): torch.zeros(size) for layer, size in shapes.items()}, tmp_path / "a.safetensors"
        )
        with pytest.raises(BadInput, match=words):
            parts(open_source(tmp_path / "a.safetensors"))


# --- files of torch.save that are not to be trusted -------------------------------------------------------------------


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, eval, exec, os.mkdir, pickle.loads, importlib.import_module])
def test_code_in_a_file_is_refused_and_not_run(call: Any, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    words = f"mkdir {proof}" if call is os.system else f"__import__('os').mkdir({str(proof)!r})"
    argument: Any = str(proof) if call is os.mkdir else words
    torch.save({"weight": torch.zeros(2), "args": Hostile(call, argument)}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match=r"a\.pt: refused, it names"):
        load(tmp_path / "a.pt")
    assert not proof.exists()


def test_objects_of_known_programs_are_kept_as_data(tmp_path: Path) -> None:
    """Also where another library has told torch to make them, as Megatron-Core does; what it told is left as it was."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    before = torch.serialization.get_safe_globals()
    beside_model = beside(True)
    torch.save(beside_model, tmp_path / "a.pt")
    held = load(tmp_path / "a.pt")
    assert fields(held["args"])["data_path"] == ["a", "b"]
    assert isinstance(fields(held["args"])["model_type"], Inert)
    assert held["iteration"] == 7
    assert set(torch.serialization.get_safe_globals()) == set(before)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole, damaged = folder / "whole.pt", folder / "damaged.pt"
    if not whole.exists():
        torch.save({"model": {"a": torch.arange(40.0)}, **beside(False)}, whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        load(damaged)
    except BadInput as error:
        assert "\n" not in str(error)
