"""`megaphone dryrun`: a table, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.checks.cluster import world_size
from configs.compose import compose_stage
from launch.dryrun import ranks_of, refuse_overrun, table
from runtime.exits import BAD_INPUT, DONE, BadInput
from tests.launch.test_cli import megaphone

PAPER = ("dryrun", "recipe=step_audio", "scale=paper", "stage=cooldown")
TINY = ("dryrun", "recipe=quickstart", "scale=tiny", "corpus.vocabulary_rows=8192", "train.precision=bf16")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("parallel.tensor=16",), "parallel.tensor=16 does not divide backbone.kv_heads=8"),
        (
            ("parallel.virtual_pipeline=null", "parallel.pipeline=128", "parallel.pipeline_layout=auto"),
            "backbone.layers=88 are too few for the 128 stages of parallel.pipeline=128",
        ),
        (("parallel.pipeline_layout=Et|" + "t|" * 30 + "L",), "has 31 layers t, backbone.layers=88"),
        (("--gpus", "1000"), "parallel.tensor x pipeline x context = 64 does not divide the 1000 processes"),
        (("--ranks", "first",), "--ranks first: numbers with commas between them are wanted"),
        (
            ("engine=deepspeed", "parallel=single", "parallel.virtual_pipeline=null", "parallel.pipeline_layout=null",
             "parallel.distributed_optimizer=false", "parallel.overlap_gradients=false", "parallel.sequence=false",
             "parallel.overlap_parameters=false"),
            "engine.name=deepspeed: a dry run builds ranks of engine.name=megatron alone",
        ),
    ],
)  # fmt: skip
def test_a_topology_that_cannot_be_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    told = megaphone(*PAPER, *words, folder=tmp_path)
    assert told.returncode == BAD_INPUT
    assert said in told.stderr
    assert told.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ranks_that_need_too_much_are_refused_after_the_table(tmp_path: Path) -> None:
    told = megaphone(*TINY, "--memory", "0.01", folder=tmp_path)
    assert told.returncode == BAD_INPUT
    last = told.stderr.splitlines()[-1]
    assert last.startswith("megaphone: error: stage pretrain: rank 0 (pipeline stage 0) needs 0.")
    assert "of 0.01 GB: weights" in last
    assert "8,192 rows of vocabulary, on 2 ranks; of each kind below there are 2" in told.stdout
    assert not list(tmp_path.iterdir())


def test_json_holds_every_rank(tmp_path: Path) -> None:
    told = megaphone(*TINY, "parallel=pp2", "--json", "--memory", "80", folder=tmp_path)
    assert told.returncode == DONE, told.stderr
    (stage,) = json.loads(told.stdout)
    assert [rank["chunks"] for rank in stage["ranks"]] == [["Ett"], ["ttL"]]
    assert all(rank["step"] > 0 and rank["predicted"] > 0 for rank in stage["ranks"])


def test_how_many_ranks_there_are() -> None:
    assert world_size(compose_stage("step_audio", "paper", "cooldown", [])) == 1024
    assert world_size(compose_stage("step_audio", "paper", "cooldown", ["parallel.data=3"])) == 192
    assert world_size(compose_stage("quickstart", "tiny", None, [])) == 2


def test_words_for_ranks() -> None:
    assert ranks_of(None) is ranks_of("distinct") is None
    assert ranks_of("0,8,56") == [0, 8, 56]
    with pytest.raises(BadInput, match="--ranks 1-3"):
        ranks_of("1-3")


def test_a_step_that_was_not_run_is_not_shown_as_nothing() -> None:
    rank = {"rank": 0, "stage": 0, "parameters": 5, "weights": 10, "gradients": 20, "optimizer": 60, "other": 0}
    rank |= {"step": None, "predicted": 100, "chunks": ["EtL"], "micro_batches": 0}
    stage = {"stage": "s", "parameters": 5, "vocabulary_rows": 128, "gpus": 1, "alike": 1, "ranks": [rank]}
    assert table(stage).splitlines()[2].split()[7:9] == ["-", "0.00"]
    refuse_overrun(stage, 1e-7)
    with pytest.raises(BadInput, match="share it out"):
        refuse_overrun(stage, 5e-8)
