"""What each rank of a topology writes, by arithmetic, is what Megatron-Core's own models would have it write."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.conversion.dry_plan import as_table, plan
from checkpoints.conversion.shards import Topology, boxes, topology_of
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.rules import Parallel
from configs.schema import BackboneConfig, ParallelConfig
from runtime.exits import BadInput
from tests.checkpoints.models import ROWS, backbone
from tests.ranks import run_ranks

Held = list[tuple[str, tuple[int, ...], tuple[int, ...]]]


def _megatrons(of: BackboneConfig, parallel: ParallelConfig) -> Held:
    """Name, offsets and shape of every piece that this rank's part of a model writes."""
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from checkpoints.pieces import pieces_of
    from checkpoints.sharded import without_extra_state
    from configs.schema import Precision
    from train.models.speech_lm import SpeechLM
    from train.models.trunk import transformer_config

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
    )
    model_parallel_cuda_manual_seed(1)
    config = transformer_config(of, parallel, Precision.fp32)
    found: Held = []
    for stage in range(parallel.virtual_pipeline or 1):
        state = SpeechLM(of, config, ROWS, stage).sharded_state_dict()
        add_prefix_for_sharding(state, MODEL_PREFIX)
        for piece in pieces_of(without_extra_state(state))[0]:
            chunk = piece.item.tensor_data.chunk
            found.append((piece.item.index.fqn, tuple(chunk.offsets), tuple(chunk.sizes)))
    return sorted(found)


UNTIED = {"tied_embeddings": False, "qkv_bias": True, "architecture": "qwen2"}


@pytest.mark.parametrize(
    ("changes", "parallel"),
    [
        (UNTIED, ParallelConfig(tensor=2, pipeline=2, pipeline_layout="Et|ttL")),
        ({"qk_norm": True, "architecture": "qwen3"}, ParallelConfig(tensor=2)),
        ({"layers": 4}, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    ],
    ids=["TP2 x PP2, uneven", "TP2, tied", "PP2 x VPP2, tied"],
)
def test_pieces_are_those_that_megatrons_models_write(changes: dict[str, Any], parallel: ParallelConfig) -> None:
    of = backbone(**changes)
    topology = topology_of(of, parallel, ROWS)
    theirs = run_ranks(_megatrons, topology.ranks, of, parallel)
    ours: list[Held] = [[] for _ in range(topology.ranks)]
    for rank, mine in plan(of, parallel, ROWS, "float32").pieces.items():
        ours[rank] += [(MODEL_PREFIX + piece.name, piece.offsets, piece.sizes) for piece in mine]
    assert [sorted(mine) for mine in ours] == theirs


@given(parallel=st.sampled_from(Parallel), tensor=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_boxes_cover_a_tensor_once(parallel: Parallel, tensor: int, rows: int, columns: int) -> None:
    shape = (rows * 2 * tensor, columns * tensor)
    seen = [[0] * shape[1] for _ in range(shape[0])]
    for mine in boxes(parallel, shape, tensor):
        for box in mine:
            for row in range(box.offsets[0], box.offsets[0] + box.sizes[0]):
                for column in range(box.offsets[1], box.offsets[1] + box.sizes[1]):
                    seen[row][column] += 1
    assert all(count == 1 for row in seen for count in row)


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        (ParallelConfig(tensor=4), "key-value heads 2 over 4"),
        (ParallelConfig(expert=2), "experts of a layer together"),
        (ParallelConfig(pipeline=2), "3 layers over 2 pipeline stages"),
        (ParallelConfig(pipeline=2, pipeline_layout="Ett|ttL"), "3 layers"),
    ],
)
def test_what_does_not_divide_is_refused(parallel: ParallelConfig, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        topology_of(backbone(), parallel, ROWS)
    with pytest.raises(BadInput, match="97 vocabulary rows over 2"):
        topology_of(backbone(), ParallelConfig(tensor=2), 97)


def test_interleaved_stages_go_round_the_pipeline_ranks() -> None:
    topology = topology_of(backbone(layers=4), ParallelConfig(pipeline=2, virtual_pipeline=2), ROWS)
    assert [topology.rank(0, stage) for stage in range(4)] == [0, 1, 0, 1]
    assert isinstance(topology, Topology) and topology.plain()["virtual_pipeline"] == 2


STEP_1 = (
    "backbone=tiny backbone.name=step1 backbone.layers=88 backbone.hidden=12288 backbone.ffn=31232 backbone.heads=96 "
    "backbone.kv_heads=8 backbone.tied_embeddings=false parallel.tensor=8 parallel.pipeline=8"
)
"""Step-1, 130B parameters, as in Step-Audio-Chat's config.json."""


MEASURED = """
import sys
from pathlib import Path
from launch.cli import main
code = main(sys.argv[1:])
# The process's own: what getrusage tells begins with what was copied of the process that started it.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""


def test_the_130b_is_planned_in_little_memory() -> None:
    command = [sys.executable, "-c", MEASURED, "checkpoint", "plan", *STEP_1.split(), "--rows", "74752", "--json"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    planned = json.loads(told.stdout)
    assert int(told.stderr.splitlines()[-1]) * 1024 < 1 << 30
    assert abs(planned["bytes"] / 263.9e9 - 1) < 1e-3
    assert len(planned["ranks"]) == 64
    assert sum(piece["bytes"] for rank in planned["ranks"] for piece in rank["pieces"]) == planned["bytes"]


def test_the_table_has_a_line_for_every_rank_and_adds_up() -> None:
    planned = plan(backbone(), ParallelConfig(tensor=2), ROWS, "bfloat16")
    table = as_table(planned, full=True)
    elements = 3 * (32 * 64 + 32 * 32 + 96 * 32 + 32 * 48 + 2 * 32) + 96 * 32 + 32
    assert f"{2 * elements:,} bytes" in table.splitlines()[-1]
    assert "model.embedding.word_embeddings.weight [48, 32] from [48, 0] of [96, 32], 3,072 bytes" in table
    assert table.count("model.decoder.layers.mlp.linear_fc1.weight [1, 24, 32]") == 3 * 2 * 2
