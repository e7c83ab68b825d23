"""DeepSpeed's own pipeline around the same SpeechLM: ZeRO-0 and 1, with Megatron-Core's tensor parallelism.

DeepSpeed cuts a list of layers into stages. Here a stage is one layer of that list, the part of the SpeechLM that
Megatron-Core builds for its rank, so weights, checkpoint names and uneven stages are those of the Megatron engine.
Hidden states are all that travels: every rank has its batches, and takes positions, sample bounds and labels from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from data_pipeline.batch import Batch
from train.engines import deepspeed_library
from train.engines import megatron_optimizer as optimizers
from train.engines.accounting import Asked, StepAccount
from train.engines.deepspeed import DeepSpeedEngine, Step
from train.engines.deepspeed_config import deepspeed_config
from train.engines.protocol import Objective, Outcome
from train.models.speech_lm import SpeechLM, run
from train.observe.phases import BACKWARD, COMMUNICATION, FORWARD, OPTIMIZER

Finish = Callable[[Any, Any], torch.Tensor]  # of a micro-batch and the last stage's output, a scalar


class Stage(torch.nn.Module):
    """One stage as a layer of DeepSpeed's: hidden states in (tokens, unused, on the first stage), hidden states out;
    on the last stage the scalar that `finish` makes of its output."""

    def __init__(self, model: SpeechLM) -> None:
        super().__init__()
        self.model = model
        self._asked: Iterator[Asked | Batch] = iter(())
        self._finish: Finish = lambda _, output: output.sum()

    def feed(self, asked: Sequence[Asked | Batch], finish: Finish) -> None:
        """Micro-batches of the forward passes to come, in order: 1F1B takes them in order on every stage. Of a batch
        alone logits are wanted."""
        self._asked, self._finish = iter(asked), finish

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        asked = next(self._asked)
        if not self.model.pre_process:
            self.model.set_input_tensor(inputs)
        output = run(self.model, asked.batch, asked.targets) if isinstance(asked, Asked) else run(self.model, asked)
        return self._finish(asked, output) if self.model.post_process else output


class DeepSpeedPipeline(DeepSpeedEngine):
    """One rank's stage of the pipeline."""

    layer: Stage

    def _wrapped(self) -> Any:
        deepspeed = deepspeed_library.load()
        from deepspeed.pipe import PipelineModule
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        self.layer = Stage(self.model)
        stages = self.config.parallel.pipeline
        with deepspeed_library.silence():
            deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)  # the groups that are there
            # The order of ranks is Megatron-Core's: tensor fastest, then data, then pipeline.
            topology = PipeModelDataParallelTopology(
                num_pp=stages, num_mp=self.config.parallel.tensor, num_dp=self.data_size
            )
            module = PipelineModule(layers=[self.layer] * stages, topology=topology, partition_method="uniform")
            self._tie(module)
            options = deepspeed_config(self.config, self.data_size)
            # Under sequence parallelism the tensor-parallel ranks' hidden states differ: none may send a share for all.
            options["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
            engine, *_ = deepspeed.initialize(model=module, optimizer=self._adamw, config=options)
        self._observe(engine)
        return engine

    def _observe(self, engine: Any) -> None:
        """Have the stopwatch's phases marked around what DeepSpeed's schedule has this rank do."""
        from deepspeed.runtime.pipe import schedule

        phases: dict[type, str | None] = {
            schedule.LoadMicroBatch: None,
            schedule.ForwardPass: FORWARD,
            schedule.BackwardPass: BACKWARD,
            schedule.OptimizerStep: OPTIMIZER,
        }

        def in_phase(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                with self.stopwatch.phase(phase):
                    return method(*arguments, **named)

            return call

        engine._INSTRUCTION_MAP = {
            kind: method if (phase := phases.get(kind, COMMUNICATION)) is None else in_phase(method, phase)
            for kind, method in engine._INSTRUCTION_MAP.items()
        }

    def _tie(self, module: Any) -> None:
        """Have gradients of the embedding and of the tied head, which is a copy, summed; the norm counts one."""
        if not self.config.backbone.tied_embeddings or not (self.model.pre_process or self.model.post_process):
            return
        weight = self.model.shared_embedding_or_output_weight()
        weight.ds_pipe_replicated = not self.model.pre_process
        module.get_tied_weights_and_groups = lambda: [(weight, parallel_state.get_embedding_group())]

    def train_step(
        self,
        batches: list[Batch],
        learning_rate: float,
        extra: list[float],
        accept: Callable[[Outcome], bool],
        *,
        norms: bool = False,
    ) -> Outcome:
        self.stopwatch.begin()
        optimizers.set_rates(self.optimizer, learning_rate, self.config.optimizer)
        self._step = step = Step(StepAccount(self.objective, batches, extra, self.device, self.stopwatch), accept)
        # DeepSpeed averages over micro-batches and data-parallel ranks; sums are wanted.
        scale = self.engine.gradient_accumulation_steps() * self.data_size
        self._feed(step.account.asked, lambda asked, losses: step.account.loss(asked, losses) * scale)
        self.engine.train_batch(_tokens(step.account.asked))
        return replace(step.settled(), seconds=self.stopwatch.read())

    def evaluate(self, batches: list[Batch], extra: list[float], objective: Objective | None = None) -> Outcome:
        account = StepAccount(objective or self.objective, batches, extra, self.device)
        self._look(account.asked, account.loss)
        return account.close(None)

    def logits(self, batch: Batch) -> torch.Tensor | None:
        seen: list[torch.Tensor] = []

        def collect(_: Batch, output: torch.Tensor) -> torch.Tensor:
            seen.append(tensor_parallel.gather_from_tensor_model_parallel_region(output).float())
            return output.sum()

        self._look([batch.to(self.device)], collect)
        return seen[0] if seen else None

    def _look(self, asked: Sequence[Asked | Batch], finish: Finish) -> None:
        """Forward passes alone."""
        for _, same in groupby(asked, key=lambda one: _batch(one).tokens.shape):
            together = list(same)
            self._feed(together, finish)
            self.engine.eval_batch(
                _tokens(together),
                compute_loss=False,
                reduce_output=None,
                bcast_loss=False,
                num_micro_batches=len(together),
            )

    def _feed(self, asked: Sequence[Asked | Batch], finish: Finish) -> None:
        shape = _batch(asked[0]).tokens.shape
        if shape != getattr(self, "_shape", None):
            self.engine.reset_activation_shape()  # else it would receive into buffers of the last micro-batches' size
            self._shape = shape
        self.layer.feed(asked, finish)


def _batch(asked: Asked | Batch) -> Batch:
    return asked.batch if isinstance(asked, Asked) else asked


def _tokens(asked: Sequence[Asked | Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What DeepSpeed's schedule loads on the first and the last stage; the layer has its batches by itself."""
    return iter([(_batch(one).tokens, _batch(one).tokens) for one in asked])
