"""What the converter writes is what Megatron-Core's own model asks a checkpoint for, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from checkpoints.convert import import_huggingface
from checkpoints.manifest import MODEL_PREFIX, read_manifest
from configs.schema import BackboneConfig
from tests.checkpoints.models import ROWS, backbone, write_model
from tests.ranks import run_ranks


def _load(native: str, of: BackboneConfig, tensor_parallel: int) -> dict[str, Any]:
    """Build GPTModel, load it, and tell what it asked for and a few numbers of what it got."""
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
    from megatron.core.models.gpt import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from checkpoints import store
    from configs.schema import ParallelConfig, Precision
    from train.models.trunk import transformer_config, trunk_spec

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    model_parallel_cuda_manual_seed(1)
    config = transformer_config(of, ParallelConfig(tensor=tensor_parallel), Precision.fp32)
    model = GPTModel(
        config,
        trunk_spec(config),
        vocab_size=ROWS,
        max_sequence_length=of.max_positions,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=of.tied_embeddings,
    )
    state = model.sharded_state_dict()
    add_prefix_for_sharding(state, MODEL_PREFIX)
    asked = {value.key for value in nested_values(state) if not value.key.endswith("_extra_state")}
    model.load_state_dict(store.load(Path(native), state))
    layer = model.decoder.layers[1]
    return {
        "asked": asked,
        "qkv": layer.self_attention.linear_qkv.weight.detach().tolist(),
        "fc1": layer.mlp.linear_fc1.weight.detach().tolist(),
        "norm": layer.pre_mlp_layernorm.weight.detach().tolist(),
    }


@pytest.mark.parametrize(
    "changes", [{}, {"tied_embeddings": False, "qkv_bias": True, "architecture": "qwen2"}], ids=["tied", "untied"]
)
def test_names_shapes_and_order_are_megatrons(tmp_path: Path, changes: dict[str, Any]) -> None:
    of = backbone(**changes)
    source = write_model(tmp_path / "source", of)
    native = import_huggingface(source, tmp_path / "native", of, text_size=ROWS, padded_size=ROWS)
    (whole,) = run_ranks(_load, 1, str(native), of, 1)
    parts = run_ranks(_load, 2, str(native), of, 2)

    assert whole["asked"] == set(read_manifest(native).tensors)
    assert parts[0]["norm"] == parts[1]["norm"] == whole["norm"]
    # Two key-value groups over two ranks: each has the rows of one; gate and up are halved each for itself.
    assert parts[0]["qkv"] + parts[1]["qkv"] == whole["qkv"]
    (gate, up), half = torch.tensor(whole["fc1"]).chunk(2), of.ffn // 2
    for rank, part in enumerate(parts):
        mine = slice(rank * half, (rank + 1) * half)
        assert torch.equal(torch.tensor(part["fc1"]), torch.cat([gate[mine], up[mine]]))
