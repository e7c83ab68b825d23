"""What a stage trains of models that are spread over pipeline stages: low-rank updates added, the rest frozen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from checkpoints.agreement import gather
from configs.parameter_names import matching
from configs.schema import Config, LoraConfig
from runtime.exits import BadInput
from train.models.lora import adaptable, add_lora
from train.models.parameters import named_parameters
from train.models.replicated import Replicated
from train.models.speech_lm import SpeechLM
from train.trainable import Group, Trained, plan


def adapt(lora: LoraConfig | None, models: Sequence[SpeechLM]) -> None:
    """Give `models`, this rank's chunks, the low-rank updates that the stage asks for.

    All ranks call this. Raises BadInput on all of them for a target that matches no linear layer.
    """
    if lora is None:
        return
    mine = sorted({name for model in models for name in adaptable(model)})
    known = sorted({name for part in gather(mine) for name in part})
    for target in lora.targets:
        if not matching([target], known):
            raise BadInput(f"stage.lora.targets: {target!r} matches none of {', '.join(known)}")
    for model in models:
        add_lora(model, lora)


def freeze(config: Config, models: Sequence[SpeechLM | Replicated]) -> Trained:
    """Plan with the parameters of all ranks, and freeze those of `models`, this rank's chunks, that are not trained.

    All ranks call this, before anything counts on gradients. Raises BadInput on all of them, with the same line.
    """
    mine = {named.name: named.elements for model in models for named in named_parameters(model)}
    trained = plan(config, {name: size for part in gather(mine) for name, size in part.items()})
    for model in models:
        for named in named_parameters(model):
            named.parameter.requires_grad_(trained.trains(named.name))
    _bound_backward([model for model in models if isinstance(model, SpeechLM)])
    return trained


def groups_of(models: Sequence[SpeechLM | Replicated], trained: Trained) -> dict[torch.nn.Parameter, Group]:
    """The group of each trained parameter of this rank's chunks."""
    return {
        named.parameter: trained.groups[trained.group_of[named.name]]
        for model in models
        for named in named_parameters(model)
        if trained.trains(named.name)
    }


# --- how far back gradients go --------------------------------------------------------------------------------------


def _bound_backward(models: Sequence[SpeechLM]) -> None:
    """Let the backward pass of every chunk end where nothing before it is trained, but not before.

    Megatron's pipeline asks for gradients of all that a stage received. Where every earlier chunk is frozen, that is a
    backward pass through layers for nobody; such a chunk answers with zeros instead. Recomputation is the other way
    round: its layers pass gradients to their parameters only if their input takes one, which the output of a frozen
    embedding does not.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    flags = [any(parameter.requires_grad for parameter in model.parameters()) for model in models]
    trains: list[list[bool]] = [flags] * stages
    dist.all_gather_object(trains, flags, group=parallel_state.get_pipeline_model_parallel_group())
    rank = parallel_state.get_pipeline_model_parallel_rank()
    in_order = [trains[stage][chunk] for chunk in range(len(models)) for stage in range(stages)]
    for chunk, model in enumerate(models):
        recomputes = model.config.recompute_granularity is not None and any(
            parameter.requires_grad for parameter in model.decoder.layers.parameters()
        )
        earlier = any(in_order[: chunk * stages + rank])
        if model.pre_process:
            if recomputes and not model.embedding.word_embeddings.weight.requires_grad:
                model.embedding.register_forward_hook(_take_gradients)
        elif not earlier and not recomputes:
            model.set_input_tensor = partial(_set_cut_input, model.set_input_tensor)


def _take_gradients(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _set_cut_input(set_input: Any, received: torch.Tensor | list[torch.Tensor | None] | None) -> None:
    """Give the chunk what it received, cut off, and leave zeros where the schedule looks for a gradient."""
    tensors = received if isinstance(received, list) else [received]
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            tensor.grad = torch.zeros_like(tensor)
    set_input([None if tensor is None else tensor.detach() for tensor in tensors])
