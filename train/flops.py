"""Model FLOPs of the trunk and the peak of the device: the two sides of MFU.

MFU = model FLOPs per second / dense peak of the device (Chowdhery et al. 2022, "PaLM", appendix B). Recomputation
does not count; nor do norms, activations and the optimiser.
"""

from __future__ import annotations

import re

from configs.schema import BackboneConfig, Precision

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


def mean_attended(lengths: list[int]) -> float:
    """Tokens that a token attends to, itself included, averaged over causal samples of these lengths."""
    return sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)


def matmul_parameters(backbone: BackboneConfig, vocabulary_size: int) -> int:
    """Weights that every token is multiplied with: attention and MLP matrices and the LM head.

    The embedding is a lookup and counts nothing; tied to the head, it counts once, as the head.
    """
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    query_and_output = 2 * backbone.hidden * backbone.heads * head_dim
    key_and_value = 2 * backbone.hidden * backbone.kv_heads * head_dim
    mlp = 3 * backbone.hidden * backbone.ffn  # gate, up, down
    return backbone.layers * (query_and_output + key_and_value + mlp) + backbone.hidden * vocabulary_size


def model_flops_per_token(backbone: BackboneConfig, vocabulary_size: int, attended: float) -> float:
    """FLOPs of forward and backward for one token: 6 N + 12 L A a.

    N: `matmul_parameters`; a multiply-add is 2 FLOPs, and the backward pass takes twice the forward. L: layers. A:
    heads x head_dim. attended: a, the mean number of tokens attended to. Scores and their weighted sum take
    2 A a FLOPs each forward. PaLM puts the whole sequence length T for a; a causal sample of T tokens has
    a = (T + 1) / 2 (`mean_attended`), so that only the half of the score matrix that is computed counts.
    """
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    attention = 12 * backbone.layers * backbone.heads * head_dim * attended
    return 6 * matmul_parameters(backbone, vocabulary_size) + attention


def device_peak_flops(device: str, precision: Precision) -> float | None:
    """Dense peak in FLOP/s of a device by the name that CUDA gives it; None for a CPU or a device not listed."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    for needed, bf16, fp32 in _PEAKS:
        if needed <= words:
            return 1e12 * (bf16 if precision is Precision.bf16 else fp32)
    return None
