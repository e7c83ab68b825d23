"""A site's Slurm settings: taken from a file of its own, and refused in one line where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.checks import check
from configs.compose import compose_stage
from configs.schema import Config, Launcher, Tasks
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

SITE = "nodes: 4\npartition: speech\ntasks: torchrun\nmodules: [cuda/12.8]\nenvironment: {NCCL_DEBUG: WARN}\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def composed(recipe: str, *words: str) -> Config:
    return compose_stage(recipe, "tiny", "pretrain", ["train.steps=100", *words])


def test_a_file_of_the_sites_own_is_a_choice_and_the_command_line_wins(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    config = composed(recipe, "launcher=slurm", f"cluster={tmp_path}/site.yaml", "cluster.nodes=8")
    check(config)
    assert config.launcher is Launcher.slurm
    assert (config.cluster.nodes, config.cluster.partition, config.cluster.tasks) == (8, "speech", Tasks.torchrun)
    assert config.cluster.environment == {"NCCL_DEBUG": "WARN"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodez: 4\n", "cluster.nodez: no such key; did you mean cluster.nodes?"),
        ("nodes: many\n", "cluster.nodes=many"),
        ("- nodes\n", "not a mapping"),
        ("nodes: [\n", "not readable as YAML"),
    ],
)
def test_a_mistake_in_the_file_names_it(recipe: str, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"site\.yaml") as error:
        composed(recipe, f"cluster={tmp_path}/site.yaml")
    assert said in str(error.value)


def test_a_file_that_is_not_there(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        composed(recipe, f"cluster={tmp_path}/site.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster.gpus_per_node=0", "launcher=slurm"), "set cluster.ranks_per_node"),
        (("cluster.time_limit=tomorrow",), "cluster.time_limit=tomorrow"),
        (("cluster.nodes=0",), "cluster.nodes=0: has to be above 0"),
        (("cluster.environment={A-B: x}",), "no name of a variable"),
        (("cluster.options={nodes: '3'}",), "cluster.options.nodes: another setting decides it"),
        (("cluster.options={UPPER: '3'}",), "no long option of sbatch"),
        (("cluster.partition='a\nb'",), "a line break or control character"),
        (("cluster.environment={A: 'x\ty'}",), "a line break or control character"),
    ],
)
def test_what_cannot_be_asked_of_slurm(recipe: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput) as error:
        check(composed(recipe, *words))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seconds=0", "cluster.preflight.seconds=0.0: has to be above 0"),
        ("checkpoints=0", "cluster.preflight.checkpoints=0: has to be above 0"),
        ("exclusions=-1", "cluster.preflight.exclusions=-1: has to be 0 or above"),
        ("slow_share=1.5", "a share of the others' median"),
        ("least={speed: 2}", "cluster.preflight.least.speed: not one of available, compute,"),
        ("least={network: -2}", "cluster.preflight.least.network=-2.0: has to be 0 or above"),
        ("second=9", "second"),
    ],
)
def test_a_preflight_that_cannot_be(recipe: str, word: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        check(composed(recipe, f"cluster.preflight.{word}"))
    assert said in str(error.value)


def test_what_a_preflight_wants_at_least_is_added_to(recipe: str) -> None:
    config = composed(recipe, "cluster.preflight.least={network: 20}", "cluster.preflight.checkpoints=3")
    check(config)
    assert config.cluster.preflight.least == {"shared_memory": 1.0, "network": 20.0}
