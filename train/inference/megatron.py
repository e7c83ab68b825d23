"""A model of any size, to be read from: on the ranks of a topology, without optimiser, gradients or their buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from checkpoints.agreement import together
from checkpoints.convert import rows_of
from checkpoints.filling import fill
from checkpoints.formats.huggingface import CONFIG_FILE
from checkpoints.formats.huggingface_config import read_config
from checkpoints.maps import of_config
from configs.checks.experts import check_experts
from configs.checks.pipeline import check_pipeline
from configs.checks.topology import check_topology
from configs.pipeline import settled
from configs.schema import Config, EngineConfig, Precision, Recompute
from data_pipeline.batch import Batch
from runtime.exits import BadInput
from train.models.attention.kernels import check_kernel
from train.models.heads.language import LANGUAGE
from train.models.heads.likeliest import Asked, Likeliest
from train.models.speech_lm import SpeechLM, run
from train.models.trunk import transformer_config

Found = tuple[Likeliest, ...]  # by the ranges that were asked about


def as_exported(config: Config, export: Path) -> tuple[Config, int]:
    """The stage's config as the model of `export` has it: its backbone, at the precision that is asked for; and the
    rows of its vocabulary.

    Raises BadInput where the export is none that is computed here, or does not go on the stage's topology. Needs no
    process group.
    """
    written = read_config(export / CONFIG_FILE)
    precision = Precision.bf16 if config.generation.bf16 else Precision.fp32
    model = replace(
        config,
        backbone=replace(of_config(written).read_config(written), name=str(export)),
        train=replace(config.train, precision=precision, micro_batch=1, fp8=None),
        parallel=replace(config.parallel, recompute=Recompute.none),
        engine=EngineConfig(),
    )
    for check in (check_topology, check_pipeline, lambda shared: check_experts(shared, None), check_kernel):
        try:
            check(model)
        except BadInput as error:
            raise BadInput(f"{export}: {error}") from error
    rows = rows_of(export, model.backbone)
    if rows % config.parallel.tensor:
        raise BadInput(f"{export}: parallel.tensor={config.parallel.tensor} does not divide its {rows} vocabulary rows")
    return model, rows


class Reader:
    """One rank's share of an export's model. Process groups exist before (`process_groups.join`)."""

    def __init__(self, model: Config, rows: int, export: Path, device: torch.device) -> None:
        """model, rows: of `as_exported`. All ranks call this; raises BadInput on all where one cannot read its part."""
        parallel, half = model.parallel, model.train.precision is Precision.bf16
        trunk = transformer_config(
            model.backbone,
            settled(model.backbone, parallel, rows),
            model.train.precision,
            attention=model.train.attention,
            deterministic=model.train.deterministic,
            expert_kernel=model.train.experts,
        )
        trunk.perform_initialization = False  # all of it is read
        tensor_parallel.model_parallel_cuda_manual_seed(model.train.seed)
        models = [SpeechLM(model.backbone, trunk, rows, stage) for stage in range(parallel.virtual_pipeline or 1)]
        for part in models:
            part.requires_grad_(False).eval().to(device)
        together(lambda: _filled(models, export, model), f"cannot read {export}")
        self._chunks = [Float16Module(trunk, part) if half else part for part in models]
        self._device = device

    def read(self, rows: Sequence[Batch], asked: Sequence[Asked]) -> list[Found]:
        """What the model says of each of `rows`, all of one length, at the places that it is `asked` about; of none on
        ranks that have not the last layer. An interleaved pipeline takes multiples of its stages."""
        found: list[Found] = []

        def forward(source: Iterator[Any], chunk: torch.nn.Module) -> tuple[Any, Callable[..., Any]]:
            batch, wanted = next(source)
            return run(chunk, batch.to(self._device), wanted.to(self._device)), keep

        def keep(output: dict[str, Found]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            found.append(output[LANGUAGE])
            nothing = torch.zeros((), device=self._device)
            return nothing, nothing.int(), {}

        with torch.no_grad():
            get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=[iter(list(zip(rows, asked, strict=True))) for _ in self._chunks],
                model=self._chunks,
                num_microbatches=len(rows),
                seq_length=rows[0].tokens.shape[1],
                micro_batch_size=1,
                forward_only=True,
            )
        return found


def _filled(models: Sequence[SpeechLM], export: Path, config: Config) -> None:
    for model in models:
        filled = fill(model.sharded_state_dict(), export, config.backbone)
        lacking = [name for name, parameter in model.named_parameters() if parameter.data_ptr() not in filled]
        if lacking:
            raise BadInput(f"{export} has nothing for {lacking[0]}")
