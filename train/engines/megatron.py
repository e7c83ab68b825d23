"""The Megatron-Core engine: tensor, sequence, pipeline and data parallel training of a SpeechLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from checkpoints.manifest import MODEL_PREFIX
from configs.schema import Config, Precision
from data_pipeline.batch import Batch
from data_pipeline.context import share_of
from train.engines import distributed_state, optimizer_state
from train.engines import megatron_optimizer as optimizers
from train.engines.accounting import Asked, StepAccount, any_rank
from train.engines.protocol import Evidence, Objective, Outcome
from train.engines.trained_set import adapt, freeze, groups_of
from train.models.attention.context import gather_row
from train.models.experts import RoutingAccount, reduce_apart
from train.models.gradients import accumulate_in_linear_layers
from train.models.heads.terms import Losses
from train.models.initialise import BeginRows, initialise, place_rows
from train.models.parameters import named_parameters
from train.models.speech_lm import SpeechLM, run
from train.models.trunk import trunk_of
from train.observe import collectives
from train.observe.megatron_norms import GroupNorms
from train.observe.phases import OPTIMIZER
from train.observe.stopwatch import MegatronTimers, Stopwatch


class MegatronEngine:
    """One rank's share of the model, its optimiser, and the pipeline schedule that runs them.

    Process groups exist before (`process_groups.join`). Losses are divided by their counts over the whole global
    batch, so data-parallel gradients are summed and nothing is averaged twice.
    """

    def __init__(self, config: Config, padded_vocabulary: int, objective: Objective, device: torch.device) -> None:
        self.config = config
        self.objective = objective
        self.device = device
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.data_size = parallel_state.get_data_parallel_world_size()
        self._context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        tensor_parallel.model_parallel_cuda_manual_seed(config.train.seed)

        self._account: StepAccount | None = None  # of the last step or validation pass
        self._gradients: torch.Tensor | None = None  # finite where this rank's own gradients were, before reduction

        accumulate_in_linear_layers()
        precision = config.train.precision
        megatron_config = trunk_of(config, padded_vocabulary)
        # One model a virtual pipeline stage of this rank, in order; without interleaving that is one.
        self.models = [
            SpeechLM(config.backbone, megatron_config, padded_vocabulary, stage)
            for stage in range(config.parallel.virtual_pipeline or 1)
        ]
        adapt(config.stage.lora, self.models)
        for model in self.models:
            initialise(model, config.train.seed, config.backbone.init_std)
            model.to(device)
            reduce_apart(model)
        self.trained = freeze(config, self.models)
        self._routing = RoutingAccount(self.models, config.backbone)
        self.chunks = [self._parallel(model, number) for number, model in enumerate(self.models)]
        optimizers.mend_distributed_optimizer()
        optimizers.norms_without_waiting()
        distributed_state.save_without_gathering()
        self.optimizer = optimizers.build_optimizer(
            config.optimizer, config.parallel, precision, self.chunks, groups_of(self.models, self.trained)
        )
        optimizers.prime(self.optimizer)
        megatron_config.finalize_model_grads_func = self._finalise
        megatron_config.grad_scale_func = self.optimizer.scale_loss
        self._overlap(megatron_config)
        self._observe(megatron_config)

    def _parallel(self, model: SpeechLM, number: int) -> DistributedDataParallel:
        """Chunk `number` of this rank, its gradients reduced over the data-parallel ranks; parameters made equal."""
        parallel = self.config.parallel
        chunk = DistributedDataParallel(
            model.config,
            DistributedDataParallelConfig(
                use_distributed_optimizer=parallel.distributed_optimizer,
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=parallel.overlap_gradients,
                overlap_param_gather=parallel.overlap_parameters,
                align_param_gather=parallel.overlap_parameters and parallel.virtual_pipeline is not None,
                bucket_size=parallel.bucket_size,
            ),
            Float16Module(model.config, model) if self.config.train.precision is Precision.bf16 else model,
            disable_bucketing=number > 0,  # the later chunks' reductions are hidden behind the first ones' backward
        )
        chunk.broadcast_params()
        return chunk

    def _overlap(self, megatron_config: TransformerConfig) -> None:
        """Tell the schedule how to hold gradient reductions back until the last micro-batch, and when to start them.

        All pipeline stages start theirs at the same time: a stage that starts alone slows down its neighbours, which
        then wait for it. The interleaved schedule, which knows the chunk that comes next, starts gathers likewise.
        """
        if not self.config.parallel.overlap_gradients:
            return
        hold_back = [chunk.no_sync for chunk in self.chunks]
        reduce = [chunk.start_grad_sync for chunk in self.chunks]
        alone = len(self.chunks) == 1
        megatron_config.no_sync_func = hold_back[0] if alone else hold_back
        if self.config.parallel.pipeline > 1:
            megatron_config.grad_sync_func = reduce[0] if alone else reduce
        if self.config.parallel.overlap_parameters and not alone:
            megatron_config.param_sync_func = [chunk.start_param_sync for chunk in self.chunks]

    def _gathered(self) -> None:
        """Have every rank hold the parameters of the last step, where their gathering waits for a forward pass."""
        if self.config.parallel.overlap_parameters:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)

    def _observe(self, megatron_config: TransformerConfig) -> None:
        """Have the schedule and the optimisers mark the stopwatch's phases, and know what norms by group are of."""
        self.stopwatch = Stopwatch(self.device)
        collectives.mark(self.stopwatch)
        megatron_config.timers = timers = MegatronTimers(self.stopwatch)
        for part in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            part.config.timers = timers
        names = {named.parameter: named.name for model in self.models for named in named_parameters(model)}
        layers = self.config.backbone.layers if self.config.observe.norms_by_layer else 0
        self.norms = GroupNorms(self.optimizer, names, self.trained, layers, self.device)

    # --- steps ----------------------------------------------------------------------------------------------

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
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        account = self._run(batches, extra, forward_only=False)
        measured = self.norms.gradients() if norms else {}
        with self.stopwatch.phase(OPTIMIZER):
            norm = optimizers.gradient_norm(self.optimizer)
        outcome = replace(account.close(float(norm)), routing=self._routing.close())
        if accept(outcome):
            with self.stopwatch.phase(OPTIMIZER):
                optimizers.set_rates(self.optimizer, learning_rate, self.config.optimizer)
                optimizers.apply(self.optimizer, norm)
            measured |= self.norms.parameters() if norms else {}
        return replace(outcome, seconds=self.stopwatch.read(), norms=measured)

    def evidence(self) -> Evidence:
        losses = self._account.averages() if self._account else []
        return Evidence(losses, None if self._gradients is None else bool(self._gradients.isfinite().all()))

    def evaluate(self, batches: list[Batch], extra: list[float], objective: Objective | None = None) -> Outcome:
        self._look()
        with torch.no_grad():
            outcome = self._run(batches, extra, forward_only=True, objective=objective).close(None)
        return replace(outcome, routing=self._routing.close())

    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Logits over all rows of the vocabulary, fp32 [1, N, V], on the last pipeline stage; None elsewhere."""
        self._look()
        seen: list[torch.Tensor] = []

        def forward(batches: Iterator[Batch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
            return run(chunk, next(batches)), collect

        def collect(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            part = tensor_parallel.gather_from_tensor_model_parallel_region(output).float()
            seen.append(gather_row(part[0], parallel_state.get_context_parallel_group())[None])
            return output.sum(), torch.ones((), dtype=torch.int, device=output.device), {}

        # The interleaved schedule takes no fewer micro-batches than there are stages; one is wanted.
        copies = self.config.parallel.pipeline if len(self.chunks) > 1 else 1
        with torch.no_grad():
            mine = self._share(batch).to(self.device)
            self._schedule(forward, [mine] * copies, mine.tokens.shape[1], forward_only=True)
        return seen[0] if seen else None

    def any(self, flag: bool) -> bool:
        return any_rank(flag, self.device)

    def _look(self) -> None:
        """Ready for forward passes without learning."""
        self._gathered()
        for chunk in self.chunks:
            chunk.eval()

    def _run(
        self, batches: list[Batch], extra: list[float], *, forward_only: bool, objective: Objective | None = None
    ) -> StepAccount:
        """Micro-batches through the schedule. Returns what they added up to, to be closed."""
        mine = [self._share(batch) for batch in batches]
        objective = objective or self.objective
        self._account = account = StepAccount(objective, mine, extra, self.device, self.stopwatch)
        self._routing.open(account.real)

        def loss(asked: Asked, losses: Losses) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            return account.loss(asked, losses), torch.ones((), dtype=torch.int, device=self.device), {}

        def forward(source: Iterator[Asked], chunk: torch.nn.Module) -> tuple[Any, Callable[..., Any]]:
            asked = next(source)
            return run(chunk, asked.batch, asked.targets), partial(loss, asked)

        self._schedule(forward, account.asked, account.tokens, forward_only=forward_only)
        return account

    def _share(self, batch: Batch) -> Batch:
        """What this rank computes of a row, on the CPU."""
        return share_of(batch, *self._context)

    def _finalise(self, chunks: list[DistributedDataParallel], *_: Any, **groups: Any) -> None:
        """Sum gradients over ranks. They must not be divided by Megatron's own token count: counts are global already.

        A last look at this rank's own: a buffer's sum is finite if all of it is, and costs no memory.
        """
        if not any(chunk.ddp_config.overlap_grad_reduce for chunk in chunks):
            buffers = [buffer for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
            sums = [buffer.grad_data.sum().float() for buffer in buffers]
            self._gradients = torch.stack(sums) if sums else torch.zeros(1)
        known = {key: value for key, value in groups.items() if key == "pg_collection"}
        finalize_model_grads(chunks, None, **known)

    def _schedule(self, forward: Callable[..., Any], asked: list[Any], tokens: int, *, forward_only: bool) -> None:
        """`forward` over each of `asked`, one a micro-batch with `tokens` tokens of this rank's."""
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(asked) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(asked),
            seq_length=tokens * self._context[1],  # of a whole row: Megatron divides it
            micro_batch_size=1,
            forward_only=forward_only,
        )

    # --- state ----------------------------------------------------------------------------------------------

    def place_rows(self, first: int, begin_rows: BeginRows, text_rows: int) -> None:
        self._gathered()
        for model in self.models:
            place_rows(model, first, begin_rows, text_rows)
        self.optimizer.reload_model_params()

    def sharded_state(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        self._gathered()
        # Of the two optimisers that a model with experts has, neither puts its number before its tensors' names.
        metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
        state: dict[str, Any] = {"model": self._sharded_model(metadata)}
        if optimizer:
            # Stacked layers need all of theirs; state of some layers alone goes by names with the layer's number.
            by_layer = {**metadata, "non_homogeneous_layers": True}
            model = self._sharded_model(by_layer) if self.trained.partial_layers else state["model"]
            own = optimizers.sharded_state(
                self.optimizer, model, loading=loading, metadata=metadata, device=self.device
            )
            masters = self.config.train.precision is Precision.bf16
            state["optimizer"] = optimizer_state.packed(own, masters=masters, loading=loading)
        if not loading:
            self._copy_buffers(state["model"])
        return state

    def _copy_buffers(self, sharded_model: dict[str, Any]) -> None:
        """Parameters change in the optimiser's step alone, but buffers where they like."""
        buffers = {buffer.untyped_storage().data_ptr() for model in self.models for buffer in model.buffers()}
        for value in nested_values(sharded_model):
            data = value.data if isinstance(value, ShardedTensor) else None
            if data is not None and data.untyped_storage().data_ptr() in buffers:
                value.data = data.clone()

    def _sharded_model(self, metadata: dict[str, Any]) -> dict[str, Any]:
        model = {str(number): part.sharded_state_dict(metadata=metadata) for number, part in enumerate(self.models)}
        add_prefix_for_sharding(model, MODEL_PREFIX)
        return model

    def load_state(self, state: dict[str, Any], *, optimizer: bool) -> None:
        for number, model in enumerate(self.models):
            model.load_state_dict(state["model"][str(number)], strict=True)
        if optimizer:
            with torch.no_grad():
                self.optimizer.load_state_dict(optimizer_state.unpacked(state["optimizer"], self.optimizer))
            optimizers.unshare_steps(self.optimizer)
        else:
            self.optimizer.reload_model_params()
