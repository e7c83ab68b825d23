"""A model for ZeRO-3 whose parameters are cut up as they are made, so that no rank ever holds more than its share of
the model and one whole parameter.

`deepspeed.zero.Init` as a context would cut them up as modules are built. But it also rounds every number that a module
makes meanwhile to the parameters' type, rotary frequencies too; and names, shapes and first values of Megatron-Core's
modules are known from whole parameters only. So modules are built without memory, planned with while their parameters
have their shapes, and then filled and handed to `zero.Init` one parameter at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state

from configs.schema import Config
from train.engines import deepspeed_library
from train.models.initialise import fillers
from train.models.speech_lm import SpeechLM
from train.models.trunk import trunk_of


def hollow_model(config: Config, padded_vocabulary: int, device: torch.device) -> SpeechLM:
    """A SpeechLM whose parameters have shape, type and device, and the memory of one element each."""
    trunk = trunk_of(config, padded_vocabulary)
    on_cpu = trunk.use_cpu_initialization
    trunk.use_cpu_initialization, trunk.perform_initialization = True, False  # name no device, and fill nothing
    with torch.device("meta"):
        model = SpeechLM(config.backbone, trunk, padded_vocabulary)
    trunk.use_cpu_initialization = on_cpu
    nowhere = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if nowhere:
        raise RuntimeError(f"these buffers would have no values under ZeRO-3: {', '.join(nowhere)}")
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = _hollow(parameter, device)
                module._parameters[name] = made[id(parameter)]
    return model


def fill_and_cut(model: SpeechLM, config: Config, options: dict[str, Any]) -> None:
    """Give every parameter of a hollow model its first values, and have ZeRO-3 cut it up, one after another.

    options: DeepSpeed's configuration. All data-parallel ranks call this.
    """
    for parameter, fill in fillers(model, config.train.seed, config.backbone.init_std):
        with torch.no_grad():
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        fill()
        _cut(parameter, options)
    left = [name for name, parameter in model.named_parameters() if not hasattr(parameter, "ds_id")]
    if left:
        raise RuntimeError(f"these parameters have no first values: {', '.join(left)}")


def _hollow(parameter: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
    element = torch.zeros((), dtype=parameter.dtype, device=device)
    hollow = torch.nn.Parameter(element.expand(parameter.shape), requires_grad=parameter.requires_grad)
    hollow.__dict__.update(parameter.__dict__)  # Megatron-Core's marks: how it is split over ranks, and the like
    return hollow


def _cut(parameter: torch.nn.Parameter, options: dict[str, Any]) -> None:
    holder = torch.nn.ParameterList([parameter])
    deepspeed_library.load().zero.Init(
        module=holder,
        data_parallel_group=parallel_state.get_data_parallel_group(),
        config_dict_or_path=options,
        mpu=deepspeed_library.ModelParallelUnit,
    )
