"""Experts: against transformers and float64 formulas, resumed, and on as many ranks as one likes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import BackboneConfig, Config, ExpertKernel, ExpertsConfig, ParallelConfig, Precision
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import RankFailed, run_ranks
from tests.train.attention_reference import batch_of
from tests.train.runs import run_config, tiny_config
from tests.train.test_resume import faulty_stage, write
from train.models.routing import Routing, added

VOCABULARY = 128
EXPERTS = {"count": 4, "top_k": 2, "ffn": 32, "balance": 0.02, "z": 1e-3}
DISTRIBUTED = {"parallel__distributed_optimizer": True}
CURVE = ("step", "loss", "loss/balance", "loss/router_z", "grad_norm", "experts/tokens", "samples")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def config_of(folder: Path, corpus: Path, **changes: Any) -> Config:
    settings = {
        "backbone__experts": EXPERTS,
        "export__huggingface": False,
        "optimizer__schedule": "constant",
        "train__log_samples": True,
        **changes,
    }
    return tiny_config(folder, corpus, **settings)


def backbone_of(experts: ExpertsConfig, **fields: Any) -> BackboneConfig:
    shape = {"layers": 2, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2, "tokenizer": "none", "init_std": 0.3}
    return BackboneConfig(**{"name": "mixed", **shape, "experts": experts, **fields})  # type: ignore[arg-type]


def trunk_config(backbone: BackboneConfig, **settings: Any) -> Any:
    from megatron.core import parallel_state

    from train.engines import process_groups
    from train.models.trunk import transformer_config

    if not parallel_state.is_initialized():
        process_groups.join(ParallelConfig())
    return transformer_config(backbone, ParallelConfig(), Precision.fp32, **settings)


# --- against others -------------------------------------------------------------------------------------------------


KINDS = ("mixtral", "qwen3_moe", "qwen3_moe, not normalised", "qwen3_moe, first layer dense")


def test_logits_are_those_of_transformers_and_conversions_keep_every_bit(tmp_path: Path) -> None:
    """The same weights, copied by name; samples packed here, and one by one there. The maps put each weight where that
    copy did, and all of them back."""
    (found,) = run_ranks(differences_from_transformers, 1, str(tmp_path))
    assert set(found) == set(KINDS)
    assert all(difference < 1e-4 for difference in found.values()), found


def differences_from_transformers(folder: str) -> dict[str, float]:
    return {kind: difference_from_transformers(kind, Path(folder) / str(turn)) for turn, kind in enumerate(KINDS)}


def difference_from_transformers(kind: str, folder: Path) -> float:
    """Largest difference of any logit over the largest logit."""
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from train.models.speech_lm import SpeechLM, run

    dense = int("dense" in kind)
    experts = ExpertsConfig(count=8, ffn=48, top_k=3, normalise_top_k="not" not in kind, dense_first=dense)
    qwen = kind.startswith("qwen")
    backbone = backbone_of(experts, ffn=48, qk_norm=qwen, tied_embeddings=False, head_dim=16)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts_per_tok": 3,
        "initializer_range": 0.3,
        "rms_norm_eps": backbone.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": backbone.rope_base},
    }
    torch.manual_seed(1)
    if qwen:
        first = {"mlp_only_layers": list(range(dense)), "norm_topk_prob": experts.normalise_top_k}
        theirs = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=8, moe_intermediate_size=48, **first, **shape))
    else:
        theirs = MixtralForCausalLM(MixtralConfig(num_local_experts=8, **shape))
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours = SpeechLM(backbone, trunk_config(backbone), VOCABULARY)
    copy_by_name(dict(theirs.named_parameters()), ours, backbone)
    if not dense:
        theirs.save_pretrained(folder / "source")
        check_conversions(folder, ours, replace(backbone, architecture=theirs.config.model_type))
    lengths = (20, 9, 3)
    batch = batch_of(lengths)
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        logits = run(ours, batch)[0]
        expected = torch.cat([theirs(part).logits[0] for part in batch.tokens.split(lengths, dim=1)])
    return float((logits - expected).abs().max() / expected.abs().max())


def check_conversions(folder: Path, ours: torch.nn.Module, backbone: BackboneConfig) -> None:
    from transformers import AutoModelForCausalLM

    from checkpoints.convert import import_huggingface
    from checkpoints.formats.native import NativeReader
    from checkpoints.manifest import MODEL_PREFIX
    from tests.checkpoints.models import tensors, vocabulary
    from tests.checkpoints.test_convert import to_huggingface
    from train.models.parameters import named_parameters
    from train.trainable import without_layer

    native = import_huggingface(
        folder / "source", folder / "native", backbone, text_size=VOCABULARY, padded_size=VOCABULARY
    )
    reader = NativeReader(native / "tensors")
    for named in named_parameters(ours):
        value = reader.read(MODEL_PREFIX + without_layer(named.name))
        for number in filter(str.isdigit, named.name.split(".")):
            value = value[int(number)]
        assert torch.equal(value, named.parameter), named.name
    nothing_new = {"vocabulary": vocabulary(VOCABULARY, (), ()), "token_names": ()}
    exported = to_huggingface(native, folder / "exported", backbone, VOCABULARY, **nothing_new)
    before, after = tensors(folder / "source"), tensors(exported)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)[1]
    assert not any(again.values()), again


def copy_by_name(theirs: dict[str, torch.Tensor], ours: torch.nn.Module, backbone: BackboneConfig) -> None:
    from checkpoints.rules import QKV

    places = {
        "embedding.word_embeddings": "model.embed_tokens",
        "decoder.final_layernorm": "model.norm",
        "output_layer": "lm_head",
        "decoder.layers": "model.layers",
        "input_layernorm": "input_layernorm",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "self_attention.linear_proj": "self_attn.o_proj",
        "self_attention.q_layernorm": "self_attn.q_norm",
        "self_attention.k_layernorm": "self_attn.k_norm",
        "mlp.router": "mlp.gate",
        "mlp.linear_fc2": "mlp.down_proj",
    }
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            layer, _, rest = name.partition(".mlp.experts.local_experts.")
            if rest:
                number, linear, _ = rest.split(".")
                stacked = "gate_up_proj" if linear == "linear_fc1" else "down_proj"
                value = theirs[f"{layer.replace('decoder', 'model')}.mlp.experts.{stacked}"][int(number)]
            elif "linear_qkv" in name:
                prefix = name.replace("decoder", "model").partition(".self_attention")[0]
                value = QKV.fuse([theirs[f"{prefix}.self_attn.{part}_proj.weight"] for part in "qkv"], backbone)
            elif "mlp.linear_fc1" in name:
                prefix = name.replace("decoder", "model").partition(".linear_fc1")[0]
                value = torch.cat([theirs[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up")])
            else:
                for own, foreign in places.items():
                    name = name.replace(own, foreign)
                value = theirs[name]
            parameter.copy_(value)


@pytest.mark.parametrize("normalised", [True, False])
def test_both_losses_and_their_gradients_are_those_of_the_formulas(normalised: bool) -> None:
    """Over two packs with padding, in float64 token by token."""
    run_ranks(losses_against_formulas, 1, normalised)


def losses_against_formulas(normalised: bool) -> None:
    from train.models.experts import ExpertLayer, Router

    experts = ExpertsConfig(count=5, ffn=16, top_k=2, normalise_top_k=normalised, balance=0.7, z=0.3)
    layer = ExpertLayer(trunk_config(backbone_of(experts), row_packs=2))
    router = layer.router
    assert isinstance(router, Router)
    torch.nn.init.normal_(router.weight)
    packs = torch.tensor([[0] * 11 + [-1] * 2 + [1] * 7 + [-1]], dtype=torch.int32)
    hidden = torch.randn(21, 1, 32, requires_grad=True)
    elsewhere = 30  # real tokens that other ranks and micro-batches have
    router.open(torch.tensor(18.0 + elsewhere, dtype=torch.float64))
    weights, chosen = router(hidden, packs)
    (0.0 * weights.sum()).backward()

    matrix = router.weight.detach().double().requires_grad_()
    inputs = hidden.detach().double().requires_grad_()
    balance = z = torch.zeros((), dtype=torch.float64)
    picks = [0] * 5
    for start, end in ((0, 11), (13, 20)):
        fractions, likely = [0.0] * 5, torch.zeros(5, dtype=torch.float64)
        for token in range(start, end):
            logits = matrix @ inputs[token, 0]
            best = logits.topk(2).indices.tolist()
            assert chosen[token].nonzero()[:, 0].tolist() == sorted(best)
            for expert in best:
                fractions[expert] += 1 / (2 * (end - start))
                picks[expert] += 1
            likely = likely + logits.softmax(0) / (end - start)
            z = z + logits.exp().sum().log() ** 2
        balance = balance + (end - start) * 5 * sum(f * p for f, p in zip(fractions, likely, strict=True))
    ((0.7 * balance + 0.3 * z) / (18 + elsewhere)).backward()
    assert router.seen.tolist() == pytest.approx([float(balance), float(z), 18.0, *picks], rel=1e-5)
    torch.testing.assert_close(router.weight.grad.double(), matrix.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hidden.grad.double(), inputs.grad, rtol=1e-4, atol=1e-6)
    sums = weights.detach().sum(1)
    assert torch.allclose(sums, torch.ones(21)) if normalised else bool((sums < 0.999).any())


def test_a_product_for_all_experts_is_that_of_one_after_another() -> None:
    """With experts that get nothing, and with nothing for any of them."""
    run_ranks(grouped_against_sequential, 1)


def grouped_against_sequential() -> None:
    from train.models.experts import ExpertLayer, GroupedExperts

    backbone = backbone_of(ExpertsConfig(count=6, ffn=16, top_k=2))
    plain = ExpertLayer(trunk_config(backbone)).experts
    together = ExpertLayer(trunk_config(backbone, expert_kernel=ExpertKernel.grouped)).experts
    assert isinstance(together, GroupedExperts) and not isinstance(plain, GroupedExperts)
    together.load_state_dict(plain.state_dict())
    for counts in ([3, 0, 5, 1, 0, 2], [0, 0, 0, 0, 0, 0]):
        found = []
        tokens, weights = torch.randn(sum(counts), 32), torch.rand(sum(counts))
        for experts in (plain, together):
            experts.zero_grad()
            mine = tokens.clone().requires_grad_(), weights.clone().requires_grad_()
            output, _ = experts(mine[0], torch.tensor(counts), mine[1])
            (output * torch.arange(32.0)).sum().backward()
            found.append([output.detach(), mine[0].grad, mine[1].grad, *(p.grad for p in experts.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_killed_run_with_experts_goes_on_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    settings = {"parallel__expert": 2, **DISTRIBUTED, "train__steps": 6, "checkpoint__every": 3}
    whole = run_config(config_of(tmp_path / "whole", corpus, **settings), 2)
    config = config_of(tmp_path / "killed", corpus, **settings)
    with pytest.raises(RankFailed):
        run_ranks(faulty_stage, 2, write(config), 1, "train_step", 5, signal.SIGKILL)
    curves = [[[line[key] for key in CURVE] for line in lines] for lines in (run_config(config, 2), whole)]
    assert curves[0] == curves[1]
    tokens = [line["tokens"] - before["tokens"] for before, line in pairwise(whole)]
    assert [sum(line["experts/tokens"]) for line in whole[1:]] == [2 * 4 * count for count in tokens]
    assert all(line["experts/worst_imbalance"] >= line["experts/imbalance"] > 1 for line in whole)


SPREAD = {"parallel__expert": 2, "parallel__tensor": 2, "parallel__sequence": True}


@pytest.mark.parametrize(
    ("dense", "legs"),
    [
        (0, [(4, {"parallel__expert": 4, **DISTRIBUTED}), (2, SPREAD), (1, DISTRIBUTED)]),
        (1, [(2, {"parallel__expert": 2, **DISTRIBUTED}), (2, {"parallel__pipeline": 2})]),
    ],
    ids=["all layers", "the lowest layer dense"],
)
def test_saved_with_experts_on_some_ranks_and_loaded_on_others(
    dense: int, legs: list[tuple[int, dict[str, Any]]], corpus: Path, tmp_path: Path
) -> None:
    """Each leg takes the last one's parameters and Adam state 2 steps further, with the experts spread anew."""
    both = {"backbone__experts": {**EXPERTS, "dense_first": dense}}
    whole = run_config(config_of(tmp_path / "whole", corpus, **both, checkpoint__every=0, train__steps=2 * len(legs)))
    lines = []
    for turn, (world, changes) in enumerate(legs, start=1):
        lines = run_config(config_of(tmp_path / "run", corpus, **both, **changes, train__steps=2 * turn), world)
    for ours, theirs in zip(lines, whole, strict=True):
        for key in ("loss", "loss/balance", "loss/router_z"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (key, ours["step"])
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), ours["step"]


def test_in_bf16_both_kernels_follow_the_fp32_curve_and_are_resumed(corpus: Path, tmp_path: Path) -> None:
    """Validation goes over the same router; its losses stand beside the others."""
    steps = {"train__steps": 6, "checkpoint__every": 3, "train__validate_every": 6}
    exact = run_config(config_of(tmp_path / "exact", corpus, **steps))
    spread = {**steps, "parallel__expert": 2, **DISTRIBUTED, "train__precision": "bf16", "train__experts": "grouped"}
    config = config_of(tmp_path / "grouped", corpus, **spread)
    lines = run_config(config, 2)
    for ours, theirs in zip(lines, exact, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["loss/balance"] == pytest.approx(theirs["loss/balance"], rel=5e-2)
    assert '"loss/router_z"' in (tmp_path / "grouped/validation.jsonl").read_text()
    shutil.rmtree(tmp_path / "grouped/checkpoints/step-00000006")
    assert [line["loss"] for line in run_config(config, 2)] == [line["loss"] for line in lines]


def test_figures_of_several_passes_add_up() -> None:
    one = Routing(6.0, 3.0, 4.0, [[3, 1], [2, 2]])
    both = added([one, Routing(), Routing(2.0, 1.0, 4.0, [[0, 4], [0, 4]])])
    assert both.averages() == {"balance": 1.0, "router_z": 0.5}
    assert both.spread() == {
        "experts/imbalance": 1.375,
        "experts/worst_imbalance": 1.5,
        "experts/idle": 0.0,
        "experts/tokens": [5, 11],
    }
    assert added([]).averages() == Routing().spread() == {}
