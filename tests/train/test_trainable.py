"""The trained set and the parameter groups, planned from names alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.parameter_names import matcher
from configs.schema import Config, LoraConfig, ParameterGroupConfig
from runtime.exits import BadInput
from train.trainable import plan, without_layer

LAYERS = 12
LAYER = {
    "self_attention.linear_qkv.weight": 96,
    "self_attention.linear_qkv.layer_norm_weight": 8,
    "mlp.linear_fc2.weight": 128,
}
MODEL = {
    "embedding.word_embeddings.weight": 1000,
    **{f"decoder.layers.{layer}.{name}": size for layer in range(LAYERS) for name, size in LAYER.items()},
    "decoder.final_layernorm.weight": 8,
    "output_layer.weight": 1000,
}
FACTORS = {
    f"decoder.layers.{layer}.mlp.linear_fc2.{leaf}": 16 for layer in range(LAYERS) for leaf in ("lora_a", "lora_b")
}


def config(**stage: object) -> Config:
    made = Config()
    for key, value in stage.items():
        setattr(made.stage, key, value)
    return made


@given(first=st.integers(0, 30), width=st.integers(0, 30), number=st.integers(0, 99))
def test_a_range_matches_its_numbers_and_no_other(first: int, width: int, number: int) -> None:
    found = matcher(f"decoder.layers.<{first}-{first + width}>.*").fullmatch(f"decoder.layers.{number}.x.y")
    assert bool(found) == (first <= number <= first + width)


@pytest.mark.parametrize("pattern", ["", "a.<5-2>.b", "a.<5>.b", "a.<x-y>", "a>b", "<1-99999999>"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(BadInput, match="pattern"):
        matcher(pattern)


def test_everything_is_trained_in_the_groups_of_old() -> None:
    whole = plan(config(), MODEL)
    assert set(whole.group_of) == set(MODEL) and not whole.partial_layers
    assert list(whole.groups) == ["embedding", "head", "trunk"]
    assert whole.counts() == {"embedding": 1000, "head": 1000, "trunk": LAYERS * 232 + 8}
    assert "4,792 of 4,792 parameters (100.00 %)" in whole.describe()


def test_patterns_pick_layers_and_leave_out() -> None:
    made = plan(config(trainable=["decoder.layers.<10-11>.*", "output_layer.*"], frozen=["*layer_norm_weight"]), MODEL)
    assert set(made.group_of) == {
        "output_layer.weight",
        *(f"decoder.layers.{layer}.{name}" for layer in (10, 11) for name in LAYER if "norm" not in name),
    }
    assert made.partial_layers
    assert list(made.groups) == ["head", "trunk"], "a group with nothing to train is no group"


def test_lora_freezes_the_rest_unless_it_is_named() -> None:
    model = MODEL | FACTORS
    assert set(plan(config(lora=LoraConfig()), model).group_of) == set(FACTORS)
    both = plan(config(lora=LoraConfig(), trainable=["embedding.*"]), model)
    assert set(both.group_of) == {*FACTORS, "embedding.word_embeddings.weight"}
    assert not both.partial_layers


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ({"trainable": ["decoder.layer.*"]}, "stage.trainable: 'decoder.layer.\\*' matches no parameter"),
        ({"frozen": ["lm_head.*"]}, "stage.frozen: 'lm_head.\\*' matches no parameter.*output_layer.weight"),
        ({"trainable": ["embedding.*"], "frozen": ["embedding.*"]}, "no parameter to train"),
        ({"trainable": []}, "no parameter to train"),
    ],
)
def test_a_trained_set_that_is_none(stage: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        plan(config(**stage), MODEL)


def test_groups_have_rates_and_decays_of_their_own() -> None:
    made = config()
    made.optimizer.weight_decay = 0.1
    made.optimizer.lr_multipliers = {"embedding": 5.0}
    made.optimizer.groups = {
        "top": ParameterGroupConfig(match=["decoder.layers.<6-11>.*"], lr_multiplier=0.5),
        "rows": ParameterGroupConfig(match=["output_layer.*"], weight_decay=0.0),
    }
    trained = plan(made, MODEL)
    assert trained.group_of["decoder.layers.6.mlp.linear_fc2.weight"] == "top"
    assert trained.group_of["decoder.layers.5.mlp.linear_fc2.weight"] == "trunk"
    assert list(trained.groups) == ["embedding", "trunk", "top", "rows"]
    assert trained.groups["embedding"].lr_multiplier == 5.0
    assert trained.groups["top"].lr_multiplier == 0.5
    assert trained.groups["top"].decay(2) == 0.1 and trained.groups["top"].decay(1) == 0.0
    assert trained.groups["rows"].decay(2) == 0.0
    assert sum(trained.counts().values()) == sum(MODEL.values())


@pytest.mark.parametrize(
    ("groups", "stage", "line"),
    [
        ({"a": ["decoder.*"], "b": ["*.weight"]}, {}, "a and b both match decoder"),
        ({"a": ["nothing.*"]}, {}, "optimizer.groups.a.match: 'nothing.\\*' matches no parameter"),
        ({"a": ["decoder.*"]}, {"frozen": ["decoder.*"]}, "optimizer.groups.a: all that it matches is frozen"),
    ],
)
def test_groups_that_cannot_be(groups: dict[str, list[str]], stage: dict[str, object], line: str) -> None:
    made = config(**stage)
    made.optimizer.groups = {name: ParameterGroupConfig(match=patterns) for name, patterns in groups.items()}
    with pytest.raises(BadInput, match=line):
        plan(made, MODEL)


def test_layers_share_the_name_of_their_stack() -> None:
    assert without_layer("decoder.layers.11.mlp.linear_fc1.weight") == "decoder.layers.mlp.linear_fc1.weight"


def test_experts_of_a_layer_are_trained_together() -> None:
    experts = {f"decoder.layers.{n}.mlp.experts.experts.{e}.linear_fc1.weight": 64 for n in range(2) for e in range(3)}
    upper = plan(config(trainable=["decoder.layers.1.mlp.*"]), MODEL | experts)
    assert {name for name in upper.group_of if name in experts} == set(list(experts)[3:])
    for stage in ({"frozen": ["*.experts.2.*"]}, {"trainable": ["*.layers.0.*.experts.0.*"]}):
        with pytest.raises(BadInput, match=r"experts\.\d\.linear_fc1.*experts of a layer are trained together"):
            plan(config(**stage), MODEL | experts)
