"""The trunk: Megatron-Core's transformer block, configured from a backbone and a topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from configs.audio_input import AudioInput, audio_input_of
from configs.pipeline import settled
from configs.schema import (
    AttentionKernel,
    BackboneConfig,
    Config,
    ExpertKernel,
    Fp8Config,
    ParallelConfig,
    Precision,
    Recompute,
)
from train.models.attention.core import PackedAttention
from train.models.attention.kernels import chosen
from train.models.experts import expert_layer, grouped, mixture
from train.models.fp8 import fp8_settings, with_fp8_products
from train.models.norm import RMSNorm
from train.models.trunk_config import TrunkConfig


def trunk_of(config: Config, vocabulary_rows: int) -> TrunkConfig:
    """Megatron's configuration of a stage's trunk, its pipeline layout settled; `vocabulary_rows` weigh in that."""
    return transformer_config(
        config.backbone,
        settled(config.backbone, config.parallel, vocabulary_rows),
        config.train.precision,
        fp8=config.train.fp8,
        attention=config.train.attention,
        deterministic=config.train.deterministic,
        expert_kernel=config.train.experts,
        row_packs=config.train.micro_batch,
        accumulate=config.engine.name == "megatron" and not config.backbone.experts,
        audio_input=audio_input_of(config),
        reward=config.stage.objective == "reward",
    )


def transformer_config(
    backbone: BackboneConfig,
    parallel: ParallelConfig,
    precision: Precision,
    *,
    fp8: Fp8Config | None = None,
    attention: AttentionKernel = AttentionKernel.auto,
    deterministic: bool = False,
    expert_kernel: ExpertKernel = ExpertKernel.auto,
    row_packs: int = 1,
    accumulate: bool = False,
    audio_input: AudioInput | None = None,
    reward: bool = False,
) -> TrunkConfig:
    """Megatron's configuration of this backbone on this topology; no dropout, no biases but (optionally) of QKV.

    accumulate: the engine has buffers that linear layers may add their gradients to, as Megatron's has. reward: as in
    `TrunkConfig`.
    """
    bf16 = precision is Precision.bf16
    return TrunkConfig(
        num_layers=backbone.layers,
        hidden_size=backbone.hidden,
        ffn_hidden_size=backbone.ffn,
        num_attention_heads=backbone.heads,
        num_query_groups=backbone.kv_heads,
        kv_channels=backbone.head_dim or backbone.hidden // backbone.heads,
        normalization="RMSNorm",
        layernorm_epsilon=backbone.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=backbone.qkv_bias,
        qk_layernorm=backbone.qk_norm,
        positions=backbone.positions,
        rope_base=backbone.rope_base,
        rope_scaling=backbone.rope_scaling,
        rope_share=backbone.rope_share,
        rope_interleaved=backbone.rope_interleaved,
        embedding_multiplier=backbone.embedding_multiplier,
        residual_multiplier=backbone.residual_multiplier,
        logits_divisor=backbone.logits_divisor,
        softmax_scale=backbone.attention_scale,
        reward=reward,
        kernel=chosen(attention, backbone.positions, half=bf16),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=backbone.init_std,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        pipeline_model_parallel_layout=parallel.pipeline_layout,
        # The interleaved schedule hides its sends and receives behind the other chunks' work, each by itself.
        overlap_p2p_comm=parallel.virtual_pipeline is not None,
        batch_p2p_comm=parallel.virtual_pipeline is None,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        bf16=bf16,
        deterministic_mode=deterministic,
        use_cpu_initialization=not torch.cuda.is_available(),
        # Losses arrive divided by their global counts, so Megatron must neither average nor rescale.
        calculate_per_token_loss=True,
        # Megatron's fused kernels need CUDA extensions; PyTorch's own are used instead.
        bias_activation_fusion=torch.cuda.is_available(),
        bias_dropout_fusion=torch.cuda.is_available(),
        apply_rope_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=accumulate,
        persist_layer_norm=False,
        audio_input=audio_input,
        **_recomputed(parallel, backbone),
        **fp8_settings(fp8),
        **mixture(backbone, parallel, grouped=grouped(expert_kernel, half=bf16), row_packs=row_packs),
    )


def _recomputed(parallel: ParallelConfig, backbone: BackboneConfig) -> dict[str, Any]:
    """Megatron's settings for activations that the backward pass computes again."""
    if parallel.recompute is Recompute.none:
        return {}
    if parallel.recompute is Recompute.selective:
        modules = list(parallel.recompute_modules)
        modules += ["moe"] if backbone.experts and "mlp" in modules else []
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    return {
        "recompute_granularity": "full",
        "recompute_method": parallel.recompute_method.value,
        "recompute_num_layers": parallel.recompute_layers,
    }


def _added(multiplier: float) -> Callable[..., Any]:
    """What stands in Megatron's place for bias, dropout and residual: x and its bias, if any, times `multiplier`.

    The multiplier is no part of weights: they stay bit for bit what they were read as."""

    def chosen_once(training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        def add(
            output_and_bias: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor, dropout: float
        ) -> torch.Tensor:
            output, bias = output_and_bias
            return residual + (output if bias is None else output + bias) * multiplier

        return add

    return chosen_once


def trunk_spec(config: TrunkConfig, virtual_stage: int = 0) -> TransformerBlockSubmodules:
    """The layers of this (virtual) pipeline stage, with our packed attention and norm in Megatron's places for them."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    attention.q_layernorm = attention.k_layernorm = RMSNorm if config.qk_layernorm else None
    if config.residual_multiplier != 1.0:
        parts.self_attn_bda = parts.mlp_bda = _added(config.residual_multiplier)
    if config.fp8 is not None:
        with_fp8_products(parts)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    specs = [layer] * get_num_layers_to_build(config, virtual_stage, stage)
    if config.experts:
        first = get_transformer_layer_offset(config, virtual_stage, stage)
        specs = [
            plain if number < config.experts.dense_first else expert_layer(plain)
            for number, plain in enumerate(specs, first)
        ]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm)
