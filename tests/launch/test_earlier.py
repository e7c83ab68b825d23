"""What a stage takes from earlier ones by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.compose import compose_stage
from configs.schema import Config, StageKind
from launch.earlier import require_settled, settled
from launch.runfolder import prepare
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe

REFERRING = [
    "corpus.folder=stage:pretrain",
    "codec.weights={centroids: 'stage:pretrain', encoder: here}",
    "mixture.sources.text.corpus=stage:pretrain",
]


def stage(tmp_path: Path, name: str, *words: str) -> Config:
    recipe = write_recipe(tmp_path / "recipe")
    return compose_stage(recipe, "tiny", name, [f"run.folder={tmp_path / 'run'}", *words])


def test_corpora_of_an_earlier_stage_are_found_once_it_has_begun(tmp_path: Path) -> None:
    align = stage(tmp_path, "align", *REFERRING)
    assert settled(align) == align
    with pytest.raises(BadInput, match=r"corpus\.folder=stage:pretrain: that stage has not begun"):
        require_settled(align)
    prepare(stage(tmp_path, "pretrain", f"corpus.folder={tmp_path / 'speech'}"))
    found = settled(align)
    speech = str(tmp_path / "speech")
    assert found.corpus.folder == found.codec.weights["centroids"] == found.mixture.sources["text"].corpus == speech
    assert found.codec.weights["encoder"] == "here" and found.mixture.sources["tts"].corpus is None
    require_settled(found)


def test_a_stage_that_makes_a_corpus_keeps_it_in_its_folder(tmp_path: Path) -> None:
    pretrain = stage(tmp_path, "pretrain", f"corpus.folder={tmp_path / 'speech'}")
    prepare(replace(pretrain, stage=replace(pretrain.stage, kind=StageKind.generate)))
    align = settled(stage(tmp_path, "align", REFERRING[0]))
    assert align.corpus.folder == str(Path(pretrain.run.folder) / "corpus")


HEARD = ["generation.decoder=stage:pretrain", "generation.vocoder=stage:pretrain"]


def test_decoders_of_what_is_said_are_the_run_folders_of_earlier_stages(tmp_path: Path) -> None:
    align = stage(tmp_path, "align", *HEARD, "generation.measures=[dnsmos]")
    with pytest.raises(BadInput, match=r"generation\.decoder=stage:pretrain: that stage has not begun"):
        require_settled(align)
    pretrain = stage(tmp_path, "pretrain", f"corpus.folder={tmp_path / 'speech'}")
    prepare(pretrain)
    found = settled(align).generation
    assert found.decoder == found.vocoder == pretrain.run.folder


@pytest.mark.parametrize("word", [*REFERRING, *HEARD])
def test_only_earlier_stages_can_be_referred_to(tmp_path: Path, word: str) -> None:
    with pytest.raises(BadInput, match="=stage:pretrain: no earlier stage of that name; there is none"):
        stage(tmp_path, "pretrain", word)
