"""What a user would take instead, on the same packs: transformers' Llama, compiled, with torch's fused AdamW.

Weights and Adam's moments are fp32, products bf16 by autocast, as transformers' Trainer has them with `bf16=True`; a
gradient's norm is clipped at 1, as ours. Layers and the loss are compiled by themselves, which computes what compiling
the whole model does in a tenth of the compiler's time. Packs go in with `position_ids` that begin again at each sample,
from which transformers makes its mask: by flash-attn where that is installed, else by FlexAttention, and where that
fails by SDPA with a mask of the whole row. What was tried and failed is told.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from configs.schema import BackboneConfig
from data_pipeline.batch import Pack, sent
from tests.benchmarks.gpu import training
from tests.benchmarks.gpu.shapes import Scale, backbone
from train.engines import process_groups

Inputs = dict[str, torch.Tensor]


def transformers(scale: Scale, *, shape: str, packs: int, micro_batches: int) -> Iterator[tuple[str, dict[str, Any]]]:
    place = training.device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    config = training.config_of(backbone(shape, "rope", scale), scale, packs)
    data = training.data_of(scale, packs, micro_batches)
    failed: list[str] = []
    for attention, compiled in _ways(place):
        try:
            model = llama(config.backbone, scale.ids.rows, attention, place)
            found = measured(model, data, packs, scale, place, compiled=compiled)
        except Exception as error:  # whatever a library says, and memory: the next way may do
            said = " ".join(f"{type(error).__name__}: {error}".split())
            failed.append(f"{attention}{', compiled' if compiled else ''}: {said[:200]}")
        else:
            found |= {"attention": attention, "compiled": compiled, "tried": failed}
            yield "", found | training.speed(config, scale, data, found["step_seconds"], place)
            return
        model = None
        training.free()  # what the error held is let go by now
    raise RuntimeError("; ".join(failed))


def _ways(place: torch.device) -> list[tuple[str, bool]]:
    """Attention and whether to compile, best first. On a CPU nothing is compiled: it would take most of the time."""
    if place.type != "cuda":
        return [("sdpa", False)]
    flash = [("flash_attention_2", True)] if importlib.util.find_spec("flash_attn") else []
    return [*flash, ("flex_attention", True), ("sdpa", True), ("sdpa", False)]


def _end_to_end(attention: str) -> bool:
    """Whether packs go into one row: flash attention takes samples by their bounds in one; a mask of one row of many
    packs would hold what no pack needs, so that others get a row a pack."""
    return attention.startswith("flash")


def llama(shape: BackboneConfig, rows: int, attention: str, place: torch.device) -> Any:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tied_embeddings,
        attn_implementation=attention,
        use_cache=False,
    )
    torch.manual_seed(0)
    with place:
        return LlamaForCausalLM(config)


def compile_parts(model: Any) -> None:
    """All layers share what is compiled for the first."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # uncompiled, FlexAttention would take all memory there is
    for layer in model.model.layers:
        layer.compile()
    model.loss_function = torch.compile(model.loss_function)


def measured(
    model: Any,
    data: list[list[Pack]],
    packs: int,
    scale: Scale,
    place: torch.device,
    *,
    compiled: bool,
) -> dict[str, Any]:
    end_to_end = _end_to_end(model.config._attn_implementation)
    if compiled:
        compile_parts(model)
    adam = torch.optim.AdamW(model.parameters(), lr=training.LEARNING_RATE, fused=True, **training.ADAM)

    def step(number: int) -> float:
        batches, count = batches_of(data[number % len(data)], packs, place, end_to_end=end_to_end)
        total = torch.zeros((), device=place)
        for batch in batches:
            with torch.autocast(place.type, torch.bfloat16):
                loss = model(**batch, num_items_in_batch=count).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        return float(total)

    return training.timed(step, scale, place)


def batches_of(
    chosen: list[Pack], packs: int, place: torch.device, *, end_to_end: bool
) -> tuple[list[Inputs], torch.Tensor]:
    """Micro-batches of a step, of so many packs each, and how many labels they have altogether, on the device."""
    parts = [chosen[start : start + packs] for start in range(0, len(chosen), packs)]
    inputs = [_inputs(part, place, end_to_end) for part in parts]
    return inputs, sent(torch.tensor(training.predicted(chosen)), place)


def _inputs(packs: list[Pack], place: torch.device, end_to_end: bool) -> Inputs:
    """A row a pack, or all in one. transformers shifts labels itself, so a sample's first is what none must predict."""
    ids, positions = (np.stack([getattr(pack, name) for pack in packs]) for name in ("tokens", "positions"))
    padding = np.stack([np.arange(len(pack.tokens)) >= len(pack.tokens) - pack.padding for pack in packs])
    columns = {"input_ids": ids, "position_ids": positions, "labels": np.where(padding | (positions == 0), -100, ids)}
    return {
        name: sent(torch.from_numpy(column.reshape(1, -1) if end_to_end else column), place)
        for name, column in columns.items()
    }


# --- DeepSpeed ------------------------------------------------------------------------------------------------------


def deepspeed(scale: Scale, *, shape: str, packs: int, micro_batches: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """ZeRO-1 around the same model, in bf16 with its own fp32 weights, given the same AdamW."""
    from train.engines import deepspeed_library

    library = deepspeed_library.load()
    place = training.device()
    config = training.config_of(backbone(shape, "rope", scale), scale, packs)
    process_groups.join(config.parallel)
    data = training.data_of(scale, packs, micro_batches)
    attention, compiled = _ways(place)[0]
    model = llama(config.backbone, scale.ids.rows, attention, place)
    if compiled:
        compile_parts(model)
    end_to_end = _end_to_end(attention)
    adam = torch.optim.AdamW(model.parameters(), lr=training.LEARNING_RATE, fused=True, **training.ADAM)
    engine, *_ = library.initialize(model=model, optimizer=adam, config=_settings(micro_batches))

    def step(number: int) -> float:
        batches, count = batches_of(data[number % len(data)], packs, place, end_to_end=end_to_end)
        total = torch.zeros((), device=place)
        for batch in batches:
            # The engine divides by the number of micro-batches, transformers by the labels of all of them.
            loss = engine(**batch, num_items_in_batch=count).loss * micro_batches
            engine.backward(loss)
            engine.step()
            total += loss.detach() / micro_batches
        return float(total)

    found = training.timed(step, scale, place) | {"attention": attention, "compiled": compiled}
    yield "", found | training.speed(config, scale, data, found["step_seconds"], place)


def _settings(micro_batches: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
