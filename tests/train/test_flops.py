"""FLOPs of a step: those that torch counts on the real model, and those of the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import BackboneConfig, ExpertsConfig, ParallelConfig, Precision, StageConfig
from data_pipeline.batch import Batch
from data_pipeline.chunks import chunk_of
from tests.ranks import run_ranks
from train.flops import Learning, Recomputed, device_peak_flops, step_flops
from train.trainable import Trained

TINY = BackboneConfig(name="tiny", layers=3, hidden=64, ffn=176, heads=4, kv_heads=2, tokenizer="none")
MIXED = replace(TINY, experts=ExpertsConfig(count=8, ffn=48, top_k=3))
VOCABULARY = 384
LENGTHS = (20, 9, 3)
TOKENS = sum(LENGTHS)
SQUARES = float(sum(length * length for length in LENGTHS))  # what the plain kernel computes: every score

# What is trained, by the names of a native checkpoint.
TRAINED: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "embedding alone": lambda name: name.startswith("embedding."),
    "all but the embedding": lambda name: not name.startswith("embedding."),
    "norms and head": lambda name: "layer_norm" in name or name.startswith("output_layer."),
    "last layer": lambda name: name.startswith("decoder.layers.2."),
    "last layer's MLP": lambda name: name.startswith("decoder.layers.2.mlp."),
    "final norm": lambda name: name == "decoder.final_layernorm.weight",
}


def counted(which: str, recomputed: bool, experts: bool = False, predicted: int | None = None) -> tuple[float, float]:
    """FLOPs that torch counts in a forward and in the backward pass of a real SpeechLM, untied, up to its logits; or
    up to its losses at the first `predicted` places, which make some of the gradients in the forward pass."""
    from train.engines import process_groups
    from train.engines.cuda_on_cpu import emulate_cuda

    emulate_cuda()
    from configs.schema import LossConfig
    from train.models import norm
    from train.models.heads.language import LANGUAGE
    from train.models.speech_lm import SpeechLM, run
    from train.models.trunk import transformer_config
    from train.objectives.next_token import NextToken

    # A norm counts nothing, and neither do the few products that ours is made of on a CPU.
    norm.rms_norm = lambda x, weight, eps: torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    process_groups.join(ParallelConfig())
    backbone = untied(MIXED if experts else TINY)
    config = transformer_config(backbone, ParallelConfig(), Precision.fp32)
    if recomputed:
        config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    model = SpeechLM(backbone, config, VOCABULARY)
    for name, parameter in model.named_parameters():
        native = name.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
        if not experts:
            native = native.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
        native = native.replace(".local_experts.", ".experts.")
        parameter.requires_grad_(TRAINED[which](native))
        parameter.main_grad = torch.zeros_like(parameter)  # type: ignore[attr-defined]
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    starts = torch.tensor([0, 20, 29, 32], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    weights = (torch.arange(TOKENS)[None] < (TOKENS if predicted is None else predicted)).float()
    batch = Batch(
        tokens, tokens, positions, weights, weights.byte(), starts, max(LENGTHS), (chunk_of(LENGTHS, 0, TOKENS),)
    )
    targets = None if predicted is None else NextToken(("text", "codes"), LossConfig(chunk=5)).targets(batch)
    # In place, torch counts nothing.
    more = {torch.ops.aten.addmm_: lambda _, left, right, *__, **___: 2 * left[0] * left[1] * right[1]}
    with sdpa_kernel(SDPBackend.MATH):  # torch knows no figure for the CPU's fused kernel
        with FlopCounterMode(display=False, custom_mapping=more) as forward:
            output = run(model, batch, targets)
            loss = output.sum() if targets is None else output[LANGUAGE]["total"]
        with FlopCounterMode(display=False, custom_mapping=more) as backward:
            loss.backward()
    return float(forward.get_total_flops()), float(backward.get_total_flops())


@pytest.mark.parametrize("which", TRAINED)
def test_flops_are_those_that_torch_counts_on_the_real_model(which: str) -> None:
    ours = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, Learning(TRAINED[which]))
    assert run_ranks(counted, 1, which, False) == [(ours.forward, ours.backward)]


@pytest.mark.parametrize("which", ["all", "all but the embedding", "last layer"])
def test_of_experts_those_count_that_tokens_go_to(which: str) -> None:
    ours = step_flops(untied(MIXED), VOCABULARY, TOKENS, SQUARES, Learning(TRAINED[which]))
    assert run_ranks(counted, 1, which, False, True) == [(ours.forward, ours.backward)]


def test_a_router_alone_takes_no_gradient_through_what_its_experts_do_first() -> None:
    """Its weights multiply what goes into the second products: back through those of the last layer, and no further."""
    router = Learning(lambda name: name == "decoder.layers.2.mlp.router.weight")
    own, second, head = 64 * 8, 3 * 64 * 48, 64 * VOCABULARY
    assert step_flops(untied(MIXED), VOCABULARY, TOKENS, SQUARES, router).backward == 2 * TOKENS * (own + second + head)


def test_what_is_computed_again_counts_for_the_hardware_alone() -> None:
    ours = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, recomputed=Recomputed(layers=TINY.layers))
    assert run_ranks(counted, 1, "all", True) == [(ours.forward, ours.hardware - ours.forward)]
    head = 2 * TINY.hidden * VOCABULARY * TOKENS
    assert ours.again == ours.forward - head
    some = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, recomputed=Recomputed(attention=True))
    assert some.again == 4 * TINY.layers * TINY.hidden * SQUARES


@pytest.mark.parametrize("which", ["all", "embedding alone"])
def test_the_head_counts_at_places_with_a_loss_alone_as_it_computes(which: str) -> None:
    ours = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, Learning(TRAINED[which]), predicted=13)
    assert sum(run_ranks(counted, 1, which, False, False, 13)[0]) == ours.model
    every = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, Learning(TRAINED[which]))
    products = 3 if which == "all" else 2
    assert every.model - ours.model == products * 2 * TINY.hidden * VOCABULARY * (TOKENS - 13)


def untied(backbone: BackboneConfig) -> BackboneConfig:
    return BackboneConfig(**{**vars(backbone), "tied_embeddings": False})


def test_all_trained_is_the_formula_of_palm() -> None:
    """2204.02311, appendix B: 6 N + 12 L H Q T a token, N without the embedding, whole sequences of T."""
    length = 100
    matrices = TINY.layers * (TINY.hidden * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 176) + 64 * VOCABULARY
    expected = length * (6 * matrices + 12 * TINY.layers * 4 * 16 * length)
    assert step_flops(TINY, VOCABULARY, length, length * length).model == expected


def test_full_recomputation_is_the_formula_of_megatron() -> None:
    """2104.04473, equation 3: 96 B s l h^2 (1 + s / 6h + V / 16 l h); ours has a gated MLP of as many weights."""
    hidden, layers, length, batch = 96, 5, 128, 4
    shape = BackboneConfig(
        name="gpt", layers=layers, hidden=hidden, ffn=8 * hidden // 3, heads=8, kv_heads=8, tokenizer="none"
    )
    ours = step_flops(shape, VOCABULARY, batch * length, batch * length**2, recomputed=Recomputed(layers=layers))
    share = 1 + length / (6 * hidden) + VOCABULARY / (16 * layers * hidden)
    assert ours.hardware == pytest.approx(96 * batch * length * layers * hidden**2 * share, rel=1e-12)


def test_low_rank_updates_cost_their_own_factors_and_no_gradient_of_what_they_update() -> None:
    """Against plain layers of which W is frozen, and A and B are trained."""
    rank, only = 8, "decoder.layers.2.mlp.linear_fc1"
    ours = step_flops(
        TINY, VOCABULARY, TOKENS, 0.0, Learning(lambda name: name.startswith(f"{only}.lora"), {only: rank})
    )
    plain = step_flops(TINY, VOCABULARY, TOKENS, 0.0)
    x = torch.randn(TOKENS, 64)
    a, b = torch.randn(64, rank, requires_grad=True), torch.randn(rank, 2 * 176, requires_grad=True)
    above = [torch.randn(2 * 176, 64 * 176 // 352), torch.randn(32, VOCABULARY * 2)]  # fc2 and the head, frozen
    assert above[0].numel() == 176 * 64 and above[1].numel() == 64 * VOCABULARY
    with FlopCounterMode(display=False) as forward:
        y = x @ a @ b
    with FlopCounterMode(display=False) as backward:
        (y @ above[0] @ above[1]).sum().backward()
    upper_forward = 2 * TOKENS * (176 * 64 + 64 * VOCABULARY)
    assert ours.forward == plain.forward + forward.get_total_flops()
    assert ours.backward == backward.get_total_flops() - upper_forward


def test_a_frozen_weight_at_the_bottom_takes_no_gradient_at_all() -> None:
    head = Learning(lambda name: name == "output_layer.weight")
    ours = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, head)
    assert ours.backward == 2 * TINY.hidden * VOCABULARY * TOKENS
    tied = step_flops(TINY, VOCABULARY, TOKENS, SQUARES, head)
    assert tied.backward == 0, "a tied head is the embedding"


def test_what_learns_to_hear_takes_its_gradient_through_the_whole_frozen_trunk() -> None:
    """As an embedding that is trained alone does, whose figures are torch's."""
    adapter = Trained({"adapter.linear_1.weight": 8}, {"adapter.linear_1.weight": "adapter"}, {})
    heard = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, Learning.of(StageConfig(), adapter))
    alone = step_flops(untied(TINY), VOCABULARY, TOKENS, SQUARES, Learning(TRAINED["embedding alone"]))
    assert heard == alone and heard.backward > 0


# --- peaks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", Precision.bf16, 312.0),
        ("NVIDIA A100-SXM4-80GB", Precision.fp32, 19.5),
        ("NVIDIA H100 80GB HBM3", Precision.bf16, 989.5),
        ("NVIDIA H100 PCIe", Precision.bf16, 756.5),
        ("NVIDIA H200", Precision.bf16, 989.5),
        ("NVIDIA B200", Precision.bf16, 2250.0),
        ("NVIDIA L40S", Precision.bf16, 362.0),
    ],
)
def test_known_devices(device: str, precision: Precision, teraflops: float) -> None:
    assert device_peak_flops(device, precision) == teraflops * 1e12


@pytest.mark.parametrize("device", ["cpu", "", "AMD EPYC 9654", "NVIDIA A10G", "NVIDIA GeForce RTX 4090"])
def test_unknown_devices_have_no_peak(device: str) -> None:
    assert device_peak_flops(device, Precision.bf16) is None
