"""FLOPs of a step, and the peak of the device: the two sides of MFU and HFU.

MFU = model FLOPs per second / dense peak of the devices (Chowdhery et al. 2022, "PaLM", 2204.02311, appendix B): what
the step has to compute, whatever the implementation. HFU counts what activation recomputation computes again as well
(Korthikanti et al. 2022, 2205.05198, appendix A). Both count matrix products, a multiply-add as 2 FLOPs, for real
tokens alone: padding, norms, activations, rotations and the optimiser count nothing, nor does what a fused attention
kernel computes again inside itself. PaLM's head predicts at every token; ours computes the places with a loss alone
(`train.models.heads.vocabulary_loss`), so only those count for it: with all others it would look busier than it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.parameter_names import AUDIO_INPUT, LORA_A
from configs.pipeline import stages_of
from configs.schema import BackboneConfig, Config, Precision, Recompute, RecomputeMethod, StageConfig
from train.trainable import Trained

# Dense peaks in TFLOP/s as NVIDIA's data sheets give them (half of those that count 2:4 sparsity): words that a
# device's name holds, bf16 on tensor cores, fp32 outside of them (PyTorch multiplies fp32 without TF32 unless told
# to). The first row whose words are all there counts.
_PEAKS: tuple[tuple[frozenset[str], float, float], ...] = tuple(
    (frozenset(words.split()), bf16, fp32)
    for words, bf16, fp32 in (
        ("gb200", 2500.0, 80.0),
        ("b200", 2250.0, 75.0),
        ("gh200", 989.5, 67.0),
        ("h200 nvl", 835.5, 60.0),
        ("h200", 989.5, 67.0),
        ("h100 nvl", 835.5, 60.0),
        ("h100 pcie", 756.5, 51.0),
        ("h100", 989.5, 67.0),
        ("h800", 989.5, 67.0),
        ("a100", 312.0, 19.5),
        ("a800", 312.0, 19.5),
        ("l40s", 362.0, 91.6),
        ("l4", 121.0, 30.3),
    )
)


@dataclass(frozen=True)
class Learning:
    """What of a model learns. trains: whether the parameter of a name does (the names of a native checkpoint, layers
    counted: `decoder.layers.3.mlp.linear_fc1.weight`); lora: rank of the low-rank update by the name of its layer
    (`decoder.layers.3.mlp.linear_fc1`), whose factors end in `lora_a` and `lora_b`; heard: whether an adapter or an
    encoder does, whose gradients come through the whole trunk."""

    trains: Callable[[str], bool] = lambda name: True
    lora: Mapping[str, int] = field(default_factory=dict)
    heard: bool = False

    @classmethod
    def of(cls, stage: StageConfig, trained: Trained) -> Learning:
        updated = [name.removesuffix(f".{LORA_A}") for name in trained.elements if name.endswith(f".{LORA_A}")]
        heard = any(name.startswith(AUDIO_INPUT) for name in trained.group_of)
        return cls(trained.trains, dict.fromkeys(updated, stage.lora.rank) if stage.lora else {}, heard)


@dataclass(frozen=True)
class Recomputed:
    """What of the forward pass is computed again for the backward pass. layers: how many of the trunk's, wholly, the
    lowest first; attention, mlp: these parts of all others."""

    layers: int = 0
    attention: bool = False
    mlp: bool = False

    @classmethod
    def of(cls, config: Config, vocabulary_rows: int) -> Recomputed:
        """As `config.parallel` asks for it; vocabulary_rows: of the embedding, padding included."""
        parallel = config.parallel
        if parallel.recompute is Recompute.selective:
            return cls(attention="core_attn" in parallel.recompute_modules, mlp="mlp" in parallel.recompute_modules)
        if parallel.recompute is Recompute.none:
            return cls()
        if parallel.recompute_method is RecomputeMethod.uniform:
            return cls(layers=config.backbone.layers)
        stages = stages_of(config.backbone, parallel, vocabulary_rows)
        return cls(layers=sum(min(parallel.recompute_layers, stage.layers) for stage in stages))


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over the whole global batch: `model` for MFU, `hardware` for HFU."""

    forward: float
    backward: float
    again: float  # by recomputation

    @property
    def model(self) -> float:
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        return self.model + self.again


class _Product(NamedTuple):
    """A product with weights of `size` elements under the name of a layer; size 0: attention's own two products."""

    name: str
    size: int
    inputs: int = 0
    outputs: int = 0
    layer: int = -1  # of the trunk; -1: the head
    beside: bool = False  # reads what the product before it reads, not what that makes


def step_flops(
    backbone: BackboneConfig,
    vocabulary_size: int,
    tokens: float,
    attended: float,
    learning: Learning | None = None,
    recomputed: Recomputed | None = None,
    predicted: float | None = None,
    heard: Iterable[ProductFlops] = (),
) -> StepFlops:
    """FLOPs of forward and backward over `tokens` tokens that attend to `attended` tokens altogether; the head predicts
    at `predicted` of them, None: at all.

    A weight matrix of n elements takes 2 n a token forward, 2 n backward for the gradient of its input and 2 n for its
    own; attention takes 4 A a forward and twice that backward, where A is heads x head size and a the tokens attended
    to. All trained, that is 6 N + 12 L A a a token: PaLM's formula, where a is the whole sequence length T. A causal
    sample of T tokens attends to T (T + 1) / 2 in all, so that only the half of the score matrix that has to be
    computed counts. The embedding is a lookup and counts nothing; tied to the head, it counts once, as the head.

    Of experts, those count that a token goes to (`backbone.experts.top_k`), and the router, which reads beside them.

    A frozen matrix takes no gradient of its own, and nothing below the lowest trained parameter any gradient at all. A
    low-rank update of rank r is two more matrices, of r (inputs + outputs) elements.

    `heard`: what encoder and adapter take beside (`train.audio_input.heard_passes`); nothing of them comes again.
    """
    trunk = product_passes(backbone, vocabulary_size, tokens, attended, learning, recomputed, predicted)
    passes = [*heard, *trunk]
    return StepFlops(
        forward=sum(one.forward for one in passes),
        backward=sum(one.backward for one in passes),
        again=sum(one.again for one in passes),
    )


@dataclass(frozen=True)
class ProductFlops:
    """FLOPs of one matrix product over a batch. name: as a checkpoint names its layer; layer: of the trunk, -1: the
    head. inputs, outputs: of its weight matrix; 0 where it has none (attention's own two products) or several
    (experts). below: whether a gradient flows through it to what comes before."""

    name: str
    layer: int
    inputs: int
    outputs: int
    forward: float
    backward: float
    again: float
    below: bool


def product_passes(
    backbone: BackboneConfig,
    vocabulary_size: int,
    tokens: float,
    attended: float,
    learning: Learning | None = None,
    recomputed: Recomputed | None = None,
    predicted: float | None = None,
) -> Iterator[ProductFlops]:
    """What `step_flops` adds up, product by product in the order of the forward pass."""
    learning, recomputed = learning or Learning(), recomputed or Recomputed()
    heads = backbone.heads * (backbone.head_dim or backbone.hidden // backbone.heads)
    # Whether anything so far takes a gradient.
    below = learning.heard or learning.trains("embedding.word_embeddings.weight")
    into = below
    for product in _products(backbone, vocabulary_size):
        below = below or any(learning.trains(name) for name in _norms(product))
        into = into if product.beside else below
        backward = 0.0
        through = below
        if not product.size:
            forward = 4.0 * heads * attended
            backward = 2 * forward if below else 0.0
        else:
            rank = learning.lora.get(product.name, 0)
            places = tokens if predicted is None or product.layer >= 0 else predicted
            factors = 2.0 * rank * (product.inputs + product.outputs) * places
            base = 2.0 * product.size * places
            forward = base + factors
            trained = learning.trains(_weight(product, backbone))
            backward = (into + trained) * base + factors  # and through B, whose input A's output is, into A
            backward += 2.0 * rank * (product.outputs + below * product.inputs) * places
            below = below or trained or rank > 0
        again = forward if below and _comes_again(product, recomputed) else 0.0
        below = below or learning.trains(f"{product.name}.bias")
        yield ProductFlops(
            product.name, product.layer, product.inputs, product.outputs, forward, backward, again, through
        )


def _products(backbone: BackboneConfig, vocabulary_size: int) -> Iterator[_Product]:
    """The matrix products of a forward pass, in order."""
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    hidden, inner = backbone.hidden, backbone.heads * head_dim
    attention = {
        "self_attention.linear_qkv": (hidden, inner + 2 * backbone.kv_heads * head_dim),
        "self_attention.core": (0, 0),
        "self_attention.linear_proj": (inner, hidden),
    }
    mlp = {"mlp.linear_fc1": (hidden, 2 * backbone.ffn), "mlp.linear_fc2": (backbone.ffn, hidden)}  # fc1: gate and up
    for layer in range(backbone.layers):
        prefix = f"decoder.layers.{layer}"
        mixed = backbone.experts is not None and layer >= backbone.experts.dense_first
        for name, (inputs, outputs) in (attention if mixed else attention | mlp).items():
            yield _Product(f"{prefix}.{name}", inputs * outputs, inputs, outputs, layer)
        if mixed:
            yield from _of_experts(backbone, layer)
    yield _Product("output_layer", hidden * vocabulary_size, hidden, vocabulary_size)


def _of_experts(backbone: BackboneConfig, layer: int) -> Iterator[_Product]:
    """Products of a layer's experts; the first expert's names stand for all, which are trained together."""
    assert backbone.experts is not None
    experts, prefix = backbone.experts, f"decoder.layers.{layer}.mlp"
    size = experts.top_k * backbone.hidden * experts.ffn
    yield _Product(f"{prefix}.experts.experts.0.linear_fc1", 2 * size, layer=layer)
    yield _Product(f"{prefix}.router", backbone.hidden * experts.count, layer=layer, beside=True)
    yield _Product(f"{prefix}.experts.experts.0.linear_fc2", size, layer=layer)


def _norms(product: _Product) -> tuple[str, ...]:
    """Parameters of norms between the product before this one and this one."""
    if product.layer < 0:
        return ("decoder.final_layernorm.weight",)
    if product.name.endswith(".core"):
        attention = product.name.removesuffix(".core")
        return (f"{attention}.q_layernorm.weight", f"{attention}.k_layernorm.weight")
    if product.name.endswith(".experts.0.linear_fc1"):
        return (f"decoder.layers.{product.layer}.pre_mlp_layernorm.weight",)
    return (f"{product.name}.layer_norm_weight",) if product.inputs else ()


def _weight(product: _Product, backbone: BackboneConfig) -> str:
    tied = product.name == "output_layer" and backbone.tied_embeddings
    return "embedding.word_embeddings.weight" if tied else f"{product.name}.weight"


def _comes_again(product: _Product, recomputed: Recomputed) -> bool:
    if product.layer < 0:
        return False
    part = recomputed.attention if not product.size else recomputed.mlp and ".mlp." in product.name
    return product.layer < recomputed.layers or part


def device_peak_flops(device: str, precision: Precision) -> float | None:
    """Dense peak in FLOP/s of a device by the name that CUDA gives it; None for a CPU or a device not listed.

    There is none of fp8: with `train.fp8` MFU stays a share of the bf16 peak, so that it compares with runs without it,
    and can be above what they reach; attention, head and some layers are in bf16 even then.
    """
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    for needed, bf16, fp32 in _PEAKS:
        if needed <= words:
            return 1e12 * (bf16 if precision is Precision.bf16 else fp32)
    return None
