"""Composition: levels, order invariance, and one clear line for every mistake."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.compose import compose_stage, groups, load_config, to_yaml
from configs.recipe import RECIPES, load_recipe
from configs.schema import Precision
from runtime.exits import BadInput
from tests.configs.recipes import RECIPE, write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path / "example")


def refusal(*arguments: object) -> str:
    """The message with which composing is refused; one line."""
    with pytest.raises(BadInput) as caught:
        compose_stage(*arguments)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_levels_win(recipe: str) -> None:
    tiny = compose_stage(recipe, "tiny", "align", [])
    assert (tiny.train.steps, tiny.train.global_batch, tiny.train.seed, tiny.optimizer.lr) == (20, 4, 7, 1e-3)
    assert compose_stage(recipe, "tiny", "pretrain", []).train.steps == 30
    assert compose_stage(recipe, "tiny", "pretrain", ["train.steps=40"]).train.steps == 40
    small = compose_stage(recipe, "small", "align", [])
    assert (small.backbone.name, small.backbone.layers, small.train.precision) == ("smollm2_135m", 30, Precision.bf16)


def test_a_scale_may_change_single_stages(tmp_path: Path) -> None:
    written = RECIPE.replace(
        "scales:\n  tiny: {", "scales:\n  tiny: {stages: {pretrain: {train.steps: 5, backbone: tiny_experts}}, "
    )
    recipe = write_recipe(tmp_path / "example", written)
    tiny = compose_stage(recipe, "tiny", "pretrain", [])
    assert (tiny.train.steps, tiny.optimizer.lr, tiny.backbone.name) == (5, 1e-3, "tiny_experts")
    assert compose_stage(recipe, "tiny", "pretrain", ["train.steps=40"]).train.steps == 40
    assert compose_stage(recipe, "tiny", "align", []).train.steps == 20
    assert compose_stage(recipe, "small", "pretrain", []).train.steps == 30
    unknown = write_recipe(tmp_path / "unknown", written.replace("{pretrain: {train.steps: 5", "{sft: {train.steps: 5"))
    assert "scales.tiny.stages.sft: no such stage; there are pretrain, align" in refusal(unknown, "tiny", "align", [])


def test_choices_and_values_of_a_group(recipe: str) -> None:
    config = compose_stage(recipe, "tiny", "align", ["backbone.layers=2", "backbone=smollm2_135m", "parallel=tp2"])
    assert (config.backbone.name, config.backbone.layers, config.parallel.tensor) == ("smollm2_135m", 2, 2)


def test_names_and_folders_of_runs(recipe: str, tmp_path: Path) -> None:
    config = compose_stage(recipe, "tiny", "align", [])
    assert (config.recipe, config.scale, config.stage.name) == ("example", "tiny", "align")
    assert (config.run.name, config.run.folder) == ("example", "runs/example/align")
    assert compose_stage(recipe, "tiny", "align", ["run.name=other"]).run.folder == "runs/other/align"
    single = write_recipe(tmp_path / "single", RECIPE.replace("  align:", "  # align:"))
    assert compose_stage(single, "tiny", None, []).run.folder == "runs/example"
    assert compose_stage(single, "tiny", None, ["run.folder=/somewhere"]).run.folder == "/somewhere"


def test_dictionary_entries_come_and_go(recipe: str) -> None:
    words = [
        "mixture.sources.more={layout: asr, weight: 2}",
        "~mixture.sources.asr",
        "+optimizer.lr_multipliers.head=5",
    ]
    config = compose_stage(recipe, "tiny", "align", words)
    assert config.mixture.sources["more"].weight == 2 and "asr" not in config.mixture.sources
    assert config.optimizer.lr_multipliers == {"head": 5.0}


def test_mixtures_nest(recipe: str) -> None:
    words = [
        "mixture=step_audio_3",
        "~mixture.sources.audio.sources.tts",
        "mixture.sources.audio.sources.more={weight: 2, sources: {a: {layout: text, weight: 1}}}",
        "mixture.sources.audio.sources.more.sources.b={layout: asr, weight: 3, epochs: 2, filter: 'wer < 0.1'}",
    ]
    audio = compose_stage(recipe, "tiny", "align", words).mixture.sources["audio"]
    assert (audio.weight, list(audio.sources)) == (4, ["asr", "continuation", "interleaved", "more"])
    inner = audio.sources["more"].sources["b"]
    assert (inner.layout, inner.weight, inner.epochs, inner.filter) == ("asr", 3, 2, "wer < 0.1")


def shuffled(node: object, rng: random.Random) -> object:
    if not isinstance(node, dict):
        return node
    items = list(node.items())
    rng.shuffle(items)
    return {key: shuffled(value, rng) for key, value in items}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_order_of_keys_changes_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    written = yaml.safe_load(RECIPE)
    parts = {key: shuffled(value, rng) if key != "stages" else value for key, value in written.items()}
    parts["stages"] = {name: shuffled(value, rng) for name, value in written["stages"].items()}
    words = ["train.seed=3", "backbone=tiny", "optimizer.lr_multipliers.head=2", "optimizer.lr_multipliers.embedding=3"]
    plain = write_recipe(tmp_path / "plain")
    items = list(parts.items())
    rng.shuffle(items)
    mixed = write_recipe(tmp_path / "mixed", yaml.safe_dump(dict(items), sort_keys=False))
    expected = to_yaml(compose_stage(plain, "small", "align", words))
    rng.shuffle(words)
    assert to_yaml(compose_stage(mixed, "small", "align", words)) == expected


def test_a_written_config_reads_back_equal(recipe: str, tmp_path: Path) -> None:
    config = compose_stage(recipe, "small", "align", ["mixture.sources.asr.options={x: [1, two]}"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.stepz=3", "train.stepz: no such key; did you mean train.steps?"),
        ("steps=3", "steps: no such key; did you mean train.steps or observe.profile.steps?"),
        ("trian.steps=3", "trian: no such key; did you mean train?"),
        ("zzz=1", "zzz: no such key; the config has recipe, scale, "),
        ("mixture.sources.a.foo=1", "mixture.sources.a.foo: no such key; mixture.sources.a has layout, weight"),
        ("train={steps: 5, foo: 6}", "train.foo: no such key"),
        ("train.steps=ten", "train.steps=ten: Value 'ten' of type 'str' could not be converted to Integer"),
        ("train.steps=1.5", "could not be converted to Integer"),
        ("train.steps=null", "train.steps=null"),
        ("train.precision=fp8", "expected one of [fp32, bf16]"),
        ("parallel.sequence=maybe", "parallel.sequence=maybe: Value 'maybe' is not a valid bool"),
        ("train=3", "train is a section; set its keys, such as train.steps"),
        ("backbone=5", "choose one of glm4_9b_chat, llama3_1_8b, "),
        ("mixture.sources.asr=3", "it has keys of its own"),
        ("backbone=tinny", "no such backbone; did you mean tiny?"),
        ("engine=none", "no such engine; there are deepspeed, deepspeed_pipeline"),
        ("train.steps=1,2", "one run takes one value"),
        ("train.steps", "'train.steps' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("~train.steps", "only an entry of a dictionary can be removed"),
        ("~mixture.sources.arr", "~mixture.sources.arr: there is no such entry; did you mean asr?"),
        ("train={steps: 5}|train.steps=6", "train.steps is given twice"),
        ("backbone=tiny|backbone=smollm2_135m", "backbone is given twice"),
        ("run.folder='${nowhere}'", "Interpolation key 'nowhere' not found"),
        ("stage.weights=nowhere", "stage.weights=nowhere: neither backbone, pretrain nor a checkpoint folder"),
        ("mixture.sources.more.layout=asr", "no value for mixture.sources.more.weight"),
        ("mixture.sources.all={weight: 1, sources: {a: {layout: asr}}}", "no value for mixture.sources.all.sources.a."),
        (
            "mixture.sources.all={weight: 1, sources: {a: {layout: asr, wait: 2}}}",
            "mixture.sources.all.sources.a.wait: no such key; did you mean mixture.sources.all.sources.a.weight?",
        ),
        ("mixture=step_audio_3|~mixture.sources.audio.sources.ars", "no such entry; did you mean asr?"),
    ],
)
def test_mistakes_on_the_command_line(recipe: str, word: str, said: str) -> None:
    assert said in refusal(recipe, "tiny", "align", word.split("|"))


def test_a_stage_takes_weights_of_earlier_stages_only(recipe: str) -> None:
    assert "neither backbone nor" in refusal(recipe, "tiny", "pretrain", ["stage.weights=align"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 20", "stepz: 20", "train.stepz: no such key; did you mean train.steps?"),
        ("steps: 20", "steps: many", "train.steps=many"),
        ("backbone: tiny", "backbone: huge", "backbone=huge: no such backbone"),
        ("optimizer.lr: 1.0e-3", "train.steps: 3", "train.steps is given twice"),
        ("scales:", "scale:", "scale: no such key; did you mean scales?"),
        ("tiny: {train: {steps: 20}, optimizer.lr: 1.0e-3}", "tiny: 3", "scales.tiny is not a mapping"),
        ("{steps: 20}", "{steps: 20", "not readable as YAML"),
        ("name: example", "name: example\nname: twice", "not readable as YAML"),
        ("{stage.weights: pretrain, ", "{", ""),
    ],
)
def test_mistakes_in_a_recipe_name_the_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in RECIPE
    recipe = write_recipe(tmp_path / "example", RECIPE.replace(old, new))
    if not said:  # still a recipe: leaving a setting out is no mistake
        assert compose_stage(recipe, "tiny", "align", []).stage.weights == "backbone"
        return
    message = refusal(recipe, "tiny", "align", [])
    assert said in message and "recipe.yaml" in message


def test_recipes_scales_and_stages_have_to_exist(recipe: str, tmp_path: Path) -> None:
    assert "did you mean quickstart?" in refusal("quickstrat", "tiny", None, [])
    assert "no scale tinny; did you mean tiny?" in refusal(recipe, "tinny", "align", [])
    assert "choose with scale=: tiny, small" in refusal(recipe, None, "align", [])
    assert "choose with stage=: pretrain, align" in refusal(recipe, "tiny", None, [])
    assert "no stage sft" in refusal(recipe, "tiny", "sft", [])
    assert "scale= needs recipe=" in refusal(None, "tiny", None, [])
    assert "no backbone is chosen: give backbone=glm4_9b_chat|llama3_1_8b|" in refusal(None, None, None, [])
    empty = write_recipe(tmp_path / "empty", "name: empty\n")
    assert "at least one stage" in refusal(empty, None, None, [])


def test_a_damaged_run_config_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text in ("train: {stepz: 3}", "train: [", "\x00"):
        file.write_text(text)
        with pytest.raises(BadInput, match=r"config\.yaml: [^\n]+$"):
            load_config(file)
    file.unlink()
    with pytest.raises(BadInput, match="No such file"):
        load_config(file)


def test_every_choice_of_every_group_composes(recipe: str) -> None:
    for group, choices in groups().items():
        for choice in choices:
            compose_stage(recipe, "tiny", "align", [f"{group}={choice}"])


@pytest.mark.parametrize("name", sorted(file.parent.name for file in RECIPES.glob("*/recipe.yaml")))
def test_every_recipe_of_ours_composes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.summary
    for scale in recipe.scales:
        for stage in recipe.stages:
            compose_stage(name, scale, stage, [])
