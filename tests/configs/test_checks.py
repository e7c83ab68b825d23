"""Impossible configurations: each is refused in one line that names the keys."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest

from configs.checks import check, check_corpus
from configs.checks.topology import data_parallel_size, model_parallel_size
from configs.compose import compose_stage
from configs.recipe import load_recipe
from configs.schema import Config, MergeConfig, Precision, Recompute, RecomputeMethod, SourceConfig, StageKind
from runtime.exits import BadInput
from tests.configs.recipes import write_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"))
    return compose_stage(recipe, "tiny", "pretrain", ["train.steps=100"])


def changed(base: Config, settings: str) -> Config:
    """`base` with `section.key=value` settings, separated by spaces; values are Python literals or words."""
    config = base
    for setting in settings.split():
        path, _, text = setting.partition("=")
        section, _, key = path.partition(".")
        value = {"false": False, "true": True}.get(text, text)
        if text[0] in "-0123456789{":
            value = ast.literal_eval(text)
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def test_a_possible_config_passes(base: Config) -> None:
    check(base)
    check(changed(base, "parallel.tensor=2 parallel.pipeline=2 parallel.sequence=true"), processes=8)


def test_deepspeed_adds_bf16_gradients_up_in_fp32_alone(base: Config) -> None:
    engine = replace(base.engine, name="deepspeed", zero_stage=0)
    with pytest.raises(BadInput, match="would add gradients up in bf16"):
        check(replace(base, engine=engine, train=replace(base.train, precision=Precision.bf16)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.steps=0", "train.steps=0: has to be above 0"),
        ("train.micro_batch=-1", "train.micro_batch=-1"),
        ("loader.lanes=0", "loader.lanes=0"),
        ("loader.shuffle_documents=0", "loader.shuffle_documents=0: has to be above 0"),
        ("loader.workers=-1", "loader.workers=-1: has to be 0 or above"),
        ("parallel.tensor=0", "parallel.tensor=0"),
        ("parallel.data=0", "parallel.data=0: has to be above 0, or null"),
        ("train.validate_every=-1", "has to be 0 or above"),
        ("optimizer.lr=-1.0", "optimizer.lr=-1.0"),
        ("optimizer.floor=1.5", "optimizer.floor=1.5: has to be from 0 to 1"),
        ("corpus.validation_share=2", "corpus.validation_share=2"),
        ("engine.deepspeed={'wall_clock_breakdown':True}", "engine.deepspeed is for engine.name=deepspeed"),
        ("engine.name=deepspeed engine.zero_stage=4", "engine.zero_stage=4: has to be from 0 to 3"),
        ("engine.name=deepspeed engine.zero_stage=3 parallel.tensor=2", "ZeRO-3 cuts up parameters by itself"),
        ("engine.name=deepspeed engine.zero_stage=2 parallel.pipeline=2", "take engine.zero_stage=1 at most"),
        (
            "engine.name=deepspeed parallel.distributed_optimizer=true",
            "is Megatron's; DeepSpeed's is engine.zero_stage",
        ),
        ("engine.name=deepspeed engine.deepspeed={'gradient_clipping':1}", "optimizer.clip_grad decides it"),
        ("engine.name=deepspeed engine.deepspeed={'zero_optimization':{'stage':2}}", "engine.zero_stage decides it"),
        ("engine.name=deepspeed engine.deepspeed={'zero_optimization':2}", "zero_optimization has to be a mapping"),
        (
            "engine.name=deepspeed engine.zero_stage=2 "
            "engine.deepspeed={'zero_optimization':{'offload_param':{'device':'cpu'}}}",
            "offload_param needs engine.zero_stage=3 or above",
        ),
        (
            "engine.name=deepspeed engine.deepspeed={'zero_optimization':{'offload_optimizer':{'device':'nvme'}}}",
            "device=nvme: has to be cpu or none",
        ),
        ("engine.name=other", "engine.name=other: not one of megatron"),
        ("optimizer.name=sgd", "optimizer.name=sgd: not one of adamw"),
        ("tracker.wandb=sometimes", "not one of offline, online, disabled"),
        ("stage.objective=grpo", "stage.objective=grpo"),
        ("optimizer.lr_multipliers={'heads':2}", "optimizer.lr_multipliers.heads: no such group"),
        ("optimizer.lr_multipliers={'head':-2}", "has to be 0 or above"),
        ("backbone.tied_embeddings=true optimizer.lr_multipliers={'head':2}", "the head is tied to the embedding"),
        ("preference.beta=0", "preference.beta=0: has to be a number above 0"),
        ("preference.smoothing=0.5", "preference.smoothing=0.5: has to be from 0 to below 0.5"),
        ("preference.nll=-1", "preference.nll=-1: has to be a number, 0 or above"),
        ("stage.objective=dpo loss.z=1e-4", "loss.z=0.0001: stage.objective=dpo knows none"),
        ("stage.objective=dpo loss.smoothing=0.1", "loss.smoothing=0.1: stage.objective=dpo knows none"),
        ("stage.objective=dpo parallel.context=2", "compares whole answers, which context parallelism cuts"),
        ("stage.objective=reward", "export.huggingface: a reward model has no Hugging Face form"),
        ("stage.objective=reward parallel.overlap_gradients=true", "the language model's head has none"),
        ("stage.objective=reward engine.name=deepspeed engine.zero_stage=3", "engine.zero_stage=3: the reward head"),
        ("merge.weights={'a':5,'b':1}", "stages by their weight go with stage.kind=merge"),
        ("loss.z=-1e-4", "loss.z=-0.0001: has to be 0 or above"),
        ("loss.chunk=-1", "loss.chunk=-1: has to be 0 or above"),
        ("loss.smoothing=1.0", "loss.smoothing=1.0: has to be from 0 to below 1"),
        ("loss.terms={'depth':2}", "loss.terms.depth: no such term; there are lm"),
        ("loss.terms={'lm':0}", "loss.terms.lm=0: has to be a number above 0"),
        ("loss.modalities={'text':-1}", "loss.modalities.text=-1: has to be a number, 0 or above"),
        ("backbone.max_positions=64", "is above backbone.max_positions=64"),
        ("parallel.virtual_pipeline=2", "parallel.virtual_pipeline=2 needs parallel.pipeline above 1"),
        ("parallel.pipeline_layout=auto", "parallel.pipeline_layout=auto needs parallel.pipeline above 1"),
        ("parallel.pipeline=2 parallel.virtual_pipeline=1", "parallel.virtual_pipeline=1 is the plain pipeline"),
        ("parallel.pipeline=2 parallel.virtual_pipeline=3", "x virtual_pipeline=3 does not divide backbone.layers=4"),
        ("parallel.pipeline=4 parallel.virtual_pipeline=2 parallel.pipeline_layout=auto", "too few for the 8 stages"),
        ("parallel.pipeline=2 parallel.pipeline_layout=Et|tL", "Et|tL has 2 layers t, backbone.layers=4"),
        ("parallel.pipeline=2 parallel.pipeline_layout=Et|tt|tL", "3 stages, parallel.pipeline=2 makes 2"),
        ("parallel.pipeline=2 parallel.pipeline_layout=Ett|ttm", "m means nothing here"),
        (
            "parallel.pipeline=2 parallel.virtual_pipeline=2 train.global_batch=6 parallel.data=2",
            "train.global_batch=6 makes 3 micro-batches a data-parallel copy",
        ),
        (
            "parallel.pipeline=2 parallel.virtual_pipeline=2 train.validation_packs=7",
            "train.validation_packs=7 makes 7 micro-batches a data-parallel copy",
        ),
        ("parallel.pipeline=2 train.micro_batch=2 train.validation_packs=31", "is no multiple of train.micro_batch=2"),
        ("parallel.recompute_layers=0", "parallel.recompute_layers=0: has to be above 0"),
        ("parallel.context=3", "parallel.context=3 cuts rows into 6 runs, which do not divide"),
        ("parallel.expert=2", "parallel.expert=2 needs backbone.experts"),
        ("backbone.kv_heads=3", "backbone.kv_heads=3 does not divide backbone.heads=4"),
        ("backbone.heads=6 backbone.kv_heads=6", "backbone.heads=6 does not divide backbone.hidden=256"),
        ("backbone.head_dim=33", "rotary positions need an even number"),
        ("train.sequence_length=9000", "above backbone.max_positions=8192"),
        ("parallel.tensor=3", "parallel.tensor=3 does not divide backbone.heads=4"),
        ("parallel.tensor=4", "parallel.tensor=4 does not divide backbone.kv_heads=2"),
        ("backbone.ffn=703 parallel.tensor=2", "does not divide backbone.ffn=703"),
        (
            "parallel.tensor=3 backbone.hidden=576 backbone.heads=9 backbone.kv_heads=3 backbone.ffn=1536",
            "parallel.tensor=3 does not divide the vocabulary's padding",
        ),
        (
            "parallel.pipeline=3",
            "does not divide backbone.layers=4; parallel.pipeline_layout says what each stage holds",
        ),
        ("parallel.sequence=true", "parallel.sequence=true needs parallel.tensor above 1"),
        ("parallel.tensor=2 parallel.sequence=true train.sequence_length=511", "does not divide train.sequence_length"),
        ("parallel.overlap_parameters=true", "needs parallel.distributed_optimizer=true"),
        (
            "parallel.overlap_parameters=true parallel.distributed_optimizer=true",
            "needs parallel.overlap_gradients=true",
        ),
        ("parallel.bucket_size=1000", "parallel.bucket_size=1000 needs parallel.overlap_gradients=true"),
        ("optimizer.warmup_steps=101", "optimizer.warmup_steps=101 is above train.steps=100"),
        ("train.validation_packs=0", "train.validation_packs=0"),
        ("mixture.sources={}", "mixture.sources is empty"),
        ("parallel.data=3", "loader.lanes=8 does not divide over the 3 data-parallel copies"),
        ("parallel.data=8", "train.global_batch=4 is no multiple of 8 data-parallel copies"),
        ("parallel.data=2 train.micro_batch=4", "train.global_batch=4 is no multiple of 2"),
        ("parallel.data=2 train.validation_packs=31", "train.validation_packs=31 does not divide over the 2"),
    ],
)
def test_impossible_values(base: Config, settings: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(changed(base, settings))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "merge.weights={}: stages by their weight go with stage.kind=merge"),
        ({"a": 5.0}, "an average takes several stages"),
        ({"a": 5.0, "b": -1.0}, "merge.weights.b=-1.0: has to be a number, 0 or above"),
        ({"a": 0.0, "b": 0.0}, "not all are 0"),
    ],
)
def test_impossible_merges(base: Config, weights: dict[str, float], said: str) -> None:
    stage = replace(base.stage, kind=StageKind.merge)
    with pytest.raises(BadInput) as caught:
        check(replace(base, stage=stage, merge=MergeConfig(weights)))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recompute": Recompute.selective, "recompute_modules": []}, "parallel.recompute_modules is empty"),
        ({"recompute": Recompute.selective, "recompute_modules": ["rope"]}, "rope is not one of core_attn, layernorm"),
        ({"recompute_layers": 3}, "parallel.recompute_layers=3 does not divide the layers of each stage, [4]"),
        ({"recompute_layers": 2, "pipeline": 2, "pipeline_layout": "Et|tttL"}, "of each stage, [1, 3]"),
        ({"recompute_layers": 2, "pipeline": 2, "pipeline_layout": "auto"}, "write the layout instead of auto"),
        (
            {"recompute_method": RecomputeMethod.block, "recompute_layers": 5},
            "is above the layers of the largest stage",
        ),
    ],
)
def test_impossible_recomputation(base: Config, changes: dict[str, Any], said: str) -> None:
    parallel = replace(base.parallel, **{"recompute": Recompute.full, **changes})
    with pytest.raises(BadInput) as caught:
        check(replace(base, parallel=parallel))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    check(replace(base, parallel=replace(parallel, recompute=Recompute.none)))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_mixture_weights_are_above_zero(base: Config, weight: float) -> None:
    sources = {"asr": replace(base.mixture.sources["asr"], weight=weight)}
    with pytest.raises(BadInput, match=r"mixture\.sources\.asr\.weight"):
        check(replace(base, mixture=replace(base.mixture, sources=sources)))


ASR = SourceConfig("asr", 1.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SourceConfig(weight=1.0), "mixture.sources.a has neither a layout nor sources of its own"),
        (SourceConfig("asr", 1.0, epochs=0), "mixture.sources.a.epochs=0: has to be above 0"),
        (SourceConfig("asr", 1.0, sources={"b": ASR}), "mixture.sources.a.layout is of a mixture inside the mixture"),
        (SourceConfig(weight=1.0, epochs=2, sources={"b": ASR}), "mixture.sources.a.epochs is of a mixture inside"),
        (SourceConfig(weight=0.0, sources={"b": ASR}), "mixture.sources.a.weight=0.0: has to be above 0"),
        (
            SourceConfig(weight=1.0, sources={"b": replace(ASR, weight=-1.0)}),
            "mixture.sources.a.sources.b.weight=-1.0: has to be above 0",
        ),
        (
            SourceConfig(weight=1.0, sources={"b": SourceConfig(weight=1.0, sources={"c": SourceConfig(weight=1.0)})}),
            "mixture.sources.a.sources.b.sources.c has neither a layout nor sources",
        ),
    ],
)
def test_impossible_sources_are_named_at_every_level(base: Config, source: SourceConfig, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(replace(base, mixture=replace(base.mixture, sources={"a": source})))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "processes", "said"),
    [
        ("parallel.tensor=2", 3, "= 2 does not divide the 3 processes"),
        ("parallel.data=2", 4, "parallel.data=2, but 4 processes"),
        ("parallel.tensor=2", 32, "loader.lanes=8 does not divide over the 16"),
    ],
)
def test_topology_fills_the_processes(base: Config, settings: str, processes: int, said: str) -> None:
    with pytest.raises(BadInput, match=said.replace(".", r"\.")):
        check(changed(base, settings), processes)


def test_sizes(base: Config) -> None:
    config = changed(base, "parallel.tensor=2 parallel.pipeline=2")
    assert model_parallel_size(config) == 4
    assert data_parallel_size(config) == 1
    assert data_parallel_size(config, 8) == 2


def test_scales_of_our_recipes_are_possible() -> None:
    recipe = load_recipe("quickstart")
    for scale in recipe.scales:
        for stage in recipe.stages:
            check(compose_stage("quickstart", scale, stage, []))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spoken_roles": ["user"]}, "user is not one of system, human, assistant"),
        ({"spoken_roles": ["human"], "voice": "lm:x"}, "wants a voice that gives sound, and corpus.voice=lm:x is none"),
        ({"specials": ["<a>", "<a>"]}, "has a token twice"),
    ],
)
def test_corpora_that_cannot_be_made(base: Config, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_corpus(replace(base, corpus=replace(base.corpus, **changes)))
