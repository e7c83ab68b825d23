"""Seconds of one layer and one micro-batch on one GPU: products, attention, what is between them, communication.

Every term is work over a rate, and every rate a data sheet's peak times a fitted share (`hardware.Reached`). Work:

- a product of m x k by k x n: its FLOPs, times 1 + edge (1/m + 1/k + 1/n);
- attention: its FLOPs; backward 5/4 of what `train.flops` counts, as the fused kernels compute scores again
  (Dao 2023, 2307.08691, section 3.1); FlexAttention, which sqrt-ALiBi needs, is taken to be as fast;
- norms, residual sums, rotations, SwiGLU: bytes moved where each is one kernel in bf16, twice that backward;
- tensor parallelism: per layer 4 collectives of tokens x hidden forward, all-gather or reduce-scatter, and 4 backward
  and 2 more that gather activations again for weight gradients (Korthikanti et al. 2022, 2205.05198, section 4.2.2);
  without sequence parallelism 2 all-reduces each way (Shoeybi et al. 2019, 1909.08053, section 3);
- context parallelism: keys and values gathered forward, and again and their gradients scattered backward
  (`train/models/attention`);
- experts: all-to-all of top_k copies of every token to them and back, each way (GShard, 2006.16668, section 3.2),
  as if every expert got as many tokens;
- gradients of weights added to fp32 sums: 8 bytes for each trained parameter and micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import BackboneConfig, Config
from launch.planner.hardware import Gpu, Software
from launch.planner.work import LayerWork
from train.flops import ProductFlops

BF16, FP32 = 2, 4
LATENCY = 20e-6  # seconds until a collective or a message begins: launch, rendezvous, first bytes; ours, rounded


@dataclass(frozen=True)
class Seconds:
    """Where time goes. Communication is what nothing hides."""

    products: float = 0.0
    attention: float = 0.0
    between: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.products + other.products,
            self.attention + other.attention,
            self.between + other.between,
            self.tensor + other.tensor,
            self.context + other.context,
            self.experts + other.experts,
        )

    def __mul__(self, times: float) -> Seconds:
        return Seconds(
            self.products * times,
            self.attention * times,
            self.between * times,
            self.tensor * times,
            self.context * times,
            self.experts * times,
        )

    @property
    def total(self) -> float:
        return self.products + self.attention + self.between + self.tensor + self.context + self.experts


@dataclass(frozen=True)
class Setting:
    """What the seconds of a layer depend on beside the layer. tokens: of one micro-batch on one rank, [T b / CP]."""

    backbone: BackboneConfig
    gpu: Gpu
    software: Software
    tokens: int
    tensor: int
    context: int
    expert: int
    sequence: bool

    @classmethod
    def of(cls, config: Config, gpu: Gpu, software: Software) -> Setting:
        parallel, train = config.parallel, config.train
        tokens = train.sequence_length * train.micro_batch // parallel.context
        return cls(
            config.backbone,
            gpu,
            software,
            tokens,
            parallel.tensor,
            parallel.context,
            parallel.expert,
            parallel.sequence,
        )

    @property
    def head_dim(self) -> int:
        return self.backbone.head_dim or self.backbone.hidden // self.backbone.heads

    def link(self, members: int, inner: int = 1) -> float:
        """Bytes/s a GPU of a ring over `members` ranks that stand `inner` apart. A group of several ranks a node has
        all their network cards: NCCL runs a ring through each."""
        gpu, reached = self.gpu, self.gpu.reached
        if members * inner <= gpu.node:
            return gpu.nvlink * reached.nvlink
        together = max(1, gpu.node // inner)
        return min(gpu.network * reached.network * together, gpu.nvlink * reached.nvlink)

    def moved(self, amount: float) -> float:
        """Seconds in which `amount` bytes go to or from memory."""
        return amount / (self.gpu.bandwidth * self.gpu.reached.memory)


def layer_seconds(layer: LayerWork, setting: Setting) -> tuple[Seconds, Seconds]:
    """Forward and backward, recomputation in the latter, of one layer of the trunk."""
    moved = _between(layer, setting)
    between = setting.moved(sum(moved.values())) * setting.software.passes
    tensor, context, experts = _tensor(setting), _context(setting), _experts(layer, setting)
    forward = Seconds(
        products=sum(_product(one, one.forward, setting) for one in layer.products if not _is_attention(one)),
        attention=sum(_attention(one.forward, setting) for one in layer.products if _is_attention(one)),
        between=between,
        tensor=4 * tensor,
        context=context,
        experts=2 * experts,
    )
    if not layer.learns:
        return forward, Seconds()
    backward = Seconds(
        products=sum(
            _product(one, one.backward + one.again, setting) for one in layer.products if not _is_attention(one)
        ),
        attention=sum(
            _attention(1.25 * one.backward + one.again, setting) for one in layer.products if _is_attention(one)
        ),
        between=2 * between + setting.moved(2 * FP32 * _trained(layer, setting)),
        tensor=(6 if setting.sequence else 4) * tensor,
        context=2 * context,
        experts=2 * experts,
    )
    if "all" in layer.again:
        backward += Seconds(between=between, tensor=4 * tensor, context=context, experts=2 * experts)
    else:
        again = sum(moved.get(module, 0.0) for module in layer.again)
        backward += Seconds(between=setting.moved(again) * setting.software.passes)
    return forward, backward


def head_seconds(head: LayerWork, setting: Setting) -> tuple[Seconds, Seconds]:
    """The last norm, the LM head and the loss. Logits are written in bf16 and read into fp32; the loss reads those
    twice, and its gradient is written and read (Megatron's vocabulary-parallel cross entropy)."""
    columns = head.products[-1].outputs / setting.tensor
    logits = setting.moved(setting.tokens * columns * (BF16 + 3 * FP32)) * setting.software.passes
    product = head.products[-1]
    tensor = _tensor(setting)
    forward = Seconds(products=_product(product, product.forward, setting), between=logits, tensor=tensor)
    if not head.learns:
        return forward, Seconds()
    sums = setting.moved(2 * FP32 * head.held.trained_dense / setting.tensor)
    backward = Seconds(products=_product(product, product.backward, setting), between=logits + sums, tensor=2 * tensor)
    return forward, backward


def transfer_seconds(setting: Setting, stage_ranks: int) -> float:
    """Of one micro-batch's activations to the next pipeline stage; stages of `stage_ranks` GPUs follow each other."""
    size = setting.tokens * setting.backbone.hidden * BF16 / (setting.tensor if setting.sequence else 1)
    return LATENCY + size / setting.link(2, stage_ranks)


# --- parts of a layer -----------------------------------------------------------------------------------------------


def _is_attention(product: ProductFlops) -> bool:
    return product.name.endswith("self_attention.core")


def _faces(setting: Setting, name: str, inputs: int, outputs: int) -> tuple[float, float, float]:
    """m, k and n of a product on one rank."""
    backbone, tensor = setting.backbone, setting.tensor
    if ".experts." in name:
        experts = backbone.experts
        assert experts is not None
        share = setting.tokens / (tensor if setting.sequence else 1) * setting.expert
        per_expert = max(1.0, share * experts.top_k / experts.count)
        return per_expert, backbone.hidden, experts.ffn * (2 if name.endswith("linear_fc1") else 1)
    if name.endswith("router"):
        assert backbone.experts is not None
        return setting.tokens / tensor, backbone.hidden, backbone.experts.count
    row = name.endswith(("linear_proj", "linear_fc2"))
    return setting.tokens, inputs / (tensor if row else 1), outputs / (1 if row else tensor)


def _product(product: ProductFlops, flops: float, setting: Setting) -> float:
    """`flops` a token of a product, over all tokens of the rank."""
    gpu = setting.gpu
    faces = _faces(setting, product.name, product.inputs, product.outputs)
    edges = 1.0 + gpu.reached.edge * sum(1.0 / face for face in faces)
    return flops * setting.tokens / setting.tensor * edges / (gpu.peak * gpu.reached.matmul)


def _attention(flops: float, setting: Setting) -> float:
    return flops * setting.tokens / setting.tensor / (setting.gpu.peak * setting.gpu.reached.attention)


def _between(layer: LayerWork, setting: Setting) -> dict[str, float]:
    """Bytes that a forward pass moves outside of products and attention, by the modules that can be recomputed: of each
    of two norms a read and a write, of each of two residual sums two reads and a write, queries and keys read and
    written as they rotate and laid out once more with the values, gate and up read and their product written."""
    backbone, tensor = setting.backbone, setting.tensor
    hidden = backbone.hidden / (tensor if setting.sequence else 1)
    sums = 6 * hidden
    queries, keys = backbone.heads * setting.head_dim, backbone.kv_heads * setting.head_dim
    positions = (2 * (queries + keys) + 2 * (queries + 2 * keys)) / tensor
    inner = backbone.ffn / tensor
    if any(".experts." in product.name for product in layer.products):
        experts = backbone.experts
        assert experts is not None
        chosen = experts.top_k / (tensor if setting.sequence else 1)
        inner = chosen * experts.ffn
        sums += 6 * chosen * backbone.hidden  # tokens sorted to their experts and back, and added up
    each = BF16 * setting.tokens
    return {"layernorm": each * 4 * hidden, "mlp": each * 3 * inner, "rest": each * (sums + positions)}


def _trained(layer: LayerWork, setting: Setting) -> float:
    return layer.held.trained_dense / setting.tensor + layer.held.trained_experts / setting.expert


def _tensor(setting: Setting) -> float:
    """One all-gather or reduce-scatter of the activations over tensor-parallel ranks, as far as nothing hides it; an
    all-reduce is two of them (Thakur et al. 2005, "Optimization of collective communication operations in MPICH")."""
    ranks = setting.tensor
    if ranks == 1:
        return 0.0
    size = setting.tokens * setting.backbone.hidden * BF16 * (ranks - 1) / ranks
    return (1 - setting.software.hidden) * (LATENCY + size / setting.link(ranks))


def _context(setting: Setting) -> float:
    ranks = setting.context
    if ranks == 1:
        return 0.0
    keys = 2 * setting.backbone.kv_heads * setting.head_dim / setting.tensor
    size = setting.tokens * keys * BF16 * (ranks - 1)
    return (1 - setting.software.hidden) * (LATENCY + size / setting.link(ranks, setting.tensor))


def _experts(layer: LayerWork, setting: Setting) -> float:
    """One all-to-all of a layer's tokens; experts are dealt out over the ranks of a pipeline stage, nearest first. A
    token's way to another node is its own: no ring shares it."""
    ranks, experts = setting.expert, setting.backbone.experts
    if ranks == 1 or experts is None or not layer.held.experts:
        return 0.0
    tokens = setting.tokens / (setting.tensor if setting.sequence else 1)
    size = tokens * experts.top_k * setting.backbone.hidden * BF16
    gpu = setting.gpu
    inside = min(gpu.node, ranks) / ranks
    near = size * (inside - 1 / ranks) / (gpu.nvlink * gpu.reached.nvlink)
    far = size * (1 - inside) / (gpu.network * gpu.reached.network)
    return LATENCY + max(near, far)
