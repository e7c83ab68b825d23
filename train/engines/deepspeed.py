"""The DeepSpeed engine: ZeRO-0 to 3 around the same SpeechLM, with Megatron-Core's tensor parallelism up to ZeRO-2, or
around another model that an objective brings along."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from configs.schema import Config, OptimizerConfig, Precision
from data_pipeline.batch import Batch
from runtime.exits import BadInput
from train.engines import deepspeed_library
from train.engines import megatron_optimizer as optimizers
from train.engines.accounting import StepAccount, any_rank
from train.engines.deepspeed_config import deepspeed_config
from train.engines.deepspeed_cut import fill_and_cut, hollow_model
from train.engines.deepspeed_folder import save_folder
from train.engines.deepspeed_state import ZeroState, gathered, inventory
from train.engines.protocol import Engine, Evidence, Objective, Outcome, OwnModel
from train.engines.trained_set import adapt, freeze, groups_of
from train.models.initialise import BeginRows, initialise, place_rows
from train.models.replicated import Replicated
from train.models.speech_lm import SpeechLM, run
from train.models.trunk import trunk_of
from train.observe import collectives
from train.observe.phases import BACKWARD, FORWARD, OPTIMIZER
from train.observe.stopwatch import Stopwatch
from train.trainable import Group


def build(config: Config, padded_vocabulary: int, objective: Objective, device: torch.device) -> Engine:
    """This rank's DeepSpeed engine: with a pipeline, DeepSpeed's own."""
    if config.parallel.pipeline > 1:
        from train.engines.deepspeed_pipeline import DeepSpeedPipeline

        return DeepSpeedPipeline(config, padded_vocabulary, objective, device)
    return DeepSpeedEngine(config, padded_vocabulary, objective, device)


class DeepSpeedEngine:
    """One rank's share of the model under ZeRO. Process groups exist before (`process_groups.join`).

    Losses are divided by their counts over the whole global batch, as in the Megatron engine, so gradients are to be
    summed over micro-batches and data-parallel ranks. DeepSpeed averages over the ranks: losses are multiplied by their
    number first.
    """

    def __init__(self, config: Config, padded_vocabulary: int, objective: Objective, device: torch.device) -> None:
        self.config = config
        self.objective = objective
        self.device = device
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.data_size = parallel_state.get_data_parallel_world_size()
        self.stage = config.engine.zero_stage
        tensor_parallel.model_parallel_cuda_manual_seed(config.train.seed)

        self.stopwatch = Stopwatch(device)
        collectives.mark(self.stopwatch)
        cut = self.stage == 3  # the model is never whole
        self._run = objective.run if isinstance(objective, OwnModel) else run
        self.model: Any
        if isinstance(objective, OwnModel):
            assert not cut, "checked: a decoder is not cut up"
            self.model = _drawn(objective, config.train.seed).to(device)
        else:
            self.model = hollow_model(config, padded_vocabulary, device) if cut else _whole(config, padded_vocabulary)
            adapt(config.stage.lora, [self.model])
            if not cut:
                initialise(self.model, config.train.seed, config.backbone.init_std)
                self.model.to(device)
        self.trained = freeze(config, [self.model])
        if any_rank(not any(parameter.requires_grad for parameter in self.model.parameters()), device):
            raise BadInput(
                f"engine.name=deepspeed: a stage of parallel.pipeline={config.parallel.pipeline} would train nothing, "
                "and DeepSpeed needs an optimiser on each; engine.name=megatron can"
            )
        if config.parallel.tensor > 1:
            sum_partial_gradients(self.model)
        self.held = inventory(self.model, self.data_size, by_layer=self.trained.partial_layers)
        self._adamw = adamw(config.optimizer, groups_of([self.model], self.trained))
        if cut:  # from here on parameters have neither their shapes nor names that checkpoints know
            with deepspeed_library.silence():
                fill_and_cut(self.model, config, deepspeed_config(config, self.data_size))
        self.engine = self._wrapped()
        self.optimizer = self.engine.optimizer
        masters = config.train.precision is Precision.bf16
        self.state = ZeroState(self.engine, self.stage, self.held, masters=masters)
        self._step: Step | None = None  # the last, or the one being taken
        self._gate()

    def _wrapped(self) -> Any:
        deepspeed = deepspeed_library.load()
        with deepspeed_library.silence():
            engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=self._adamw,
                config=deepspeed_config(self.config, self.data_size),
                mpu=deepspeed_library.ModelParallelUnit,
            )
        return engine

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
        """Norms by group are not measured: ZeRO holds gradients cut up, in no order of parameters."""
        self.stopwatch.begin()
        self.engine.train()
        optimizers.set_rates(self.optimizer, learning_rate, self.config.optimizer)
        self._step = step = Step(StepAccount(self.objective, batches, extra, self.device, self.stopwatch), accept)
        for number, asked in enumerate(step.account.asked, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            with self.stopwatch.phase(FORWARD):
                losses = self._run(self.engine, asked.batch, asked.targets)
                loss = step.account.loss(asked, losses) * self.data_size
            with self.stopwatch.phase(BACKWARD):
                self.engine.backward(loss, scale_wrt_gas=False)
        with self.stopwatch.phase(OPTIMIZER):
            self.engine.step()
        return replace(step.settled(), seconds=self.stopwatch.read())

    def evidence(self) -> Evidence:
        """Gradients are summed over ranks as they come, so no rank can tell whether its own were finite."""
        return Evidence(self._step.account.averages() if self._step else [], None)

    def evaluate(self, batches: list[Batch], extra: list[float], objective: Objective | None = None) -> Outcome:
        self.engine.eval()
        account = StepAccount(objective or self.objective, batches, extra, self.device)
        with torch.no_grad():
            for asked in account.asked:
                account.loss(asked, self._run(self.engine, asked.batch, asked.targets))
        return account.close(None)

    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Logits over all rows of the vocabulary, fp32 [1, N, V]."""
        self.engine.eval()
        with torch.no_grad():
            output = run(self.engine, batch.to(self.device))
            return tensor_parallel.gather_from_tensor_model_parallel_region(output).float()

    def any(self, flag: bool) -> bool:
        return any_rank(flag, self.device)

    def _gate(self) -> None:
        """Have torch's optimiser ask before it updates anything.

        DeepSpeed calls it when gradients are summed, their norm known and clipped: once, or once a group of parameters.
        """
        inner = self.state.torch_optimizer
        update = inner.step

        def step(*arguments: Any) -> Any:
            assert self._step is not None
            if self._step.accepted is None:
                self._step.decide(self._clipped(inner) if not self.stage else self.engine.optimizer._global_grad_norm)
            return update(*arguments) if self._step.accepted else None

        inner.step = step  # type: ignore[assignment, method-assign]

    @torch.no_grad()
    def _clipped(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Without ZeRO: clip the gradients by their global norm, which is returned."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        square = torch.zeros((), device=self.device)
        for parameter in parameters:
            if counts_in_norm(parameter):
                square += parameter.grad.float().square().sum()
        dist.all_reduce(square, group=parallel_state.get_model_parallel_group())
        norm = square.sqrt()
        bound = self.config.optimizer.clip_grad
        factor = bound / (float(norm) + 1e-6) if bound else 1.0
        if factor < 1.0:
            for parameter in parameters:
                parameter.grad.mul_(factor)
        return norm

    # --- state ----------------------------------------------------------------------------------------------

    def place_rows(self, first: int, begin_rows: BeginRows, text_rows: int) -> None:
        ends = ("word_embeddings.weight", "output_layer.weight")
        weights = [parameter for name, parameter in self.model.named_parameters() if name.endswith(ends)]
        with gathered(weights, changed_by=0):
            place_rows(self.model, first, begin_rows, text_rows)
        self.state.follow_weights()

    def sharded_state(self, *, optimizer: bool, loading: bool) -> dict[str, Any]:
        return self.state.sharded(optimizer=optimizer, loading=loading)

    def load_state(self, state: dict[str, Any], *, optimizer: bool) -> None:
        self.state.load(state, optimizer=optimizer)

    def save_own(self, folder: Path, step: int) -> None:
        save_folder(self.engine, self.model, self.held, folder, step)


@dataclass
class Step:
    """A step being taken: whether its gradients may be applied (None: not asked yet), and its figures."""

    account: StepAccount
    accept: Callable[[Outcome], bool]
    accepted: bool | None = None
    outcome: Outcome | None = None

    def decide(self, norm: float | torch.Tensor) -> None:
        """Close the account and ask; DeepSpeed writes -1 for the norm of gradients that are not finite."""
        self.outcome = self.account.close(float(norm) if float(norm) >= 0 else math.inf)
        self.accepted = self.accept(self.outcome)

    def settled(self) -> Outcome:
        """The figures. Where gradients were not finite, DeepSpeed dropped them before anybody was asked."""
        if self.outcome is None:
            self.decide(math.inf)
        assert self.outcome is not None
        return self.outcome


def adamw(config: OptimizerConfig, groups: Mapping[torch.nn.Parameter, Group]) -> torch.optim.AdamW:
    """Torch's AdamW over the trained parameters, `groups` holding the group of each; on a GPU in fused kernels."""
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter, group in groups.items():
        members.setdefault(optimizers.factors(parameter, group, config), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members[pair], "lr_mult": pair[0], "wd_mult": pair[1]} for pair in sorted(members)],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=torch.cuda.is_available(),
    )


def counts_in_norm(parameter: torch.nn.Parameter) -> bool:
    """Whether this rank's copy of a parameter is the one that the global gradient norm counts."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    split = getattr(parameter, "tensor_model_parallel", False)
    return split or parallel_state.get_tensor_model_parallel_rank() == 0


def _whole(config: Config, padded_vocabulary: int) -> SpeechLM:
    return SpeechLM(config.backbone, trunk_of(config, padded_vocabulary), padded_vocabulary)


def _drawn(objective: OwnModel, seed: int) -> Replicated:
    """An objective's own model, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return objective.build()


def sum_partial_gradients(model: torch.nn.Module) -> None:
    """Sum, as they arise, gradients of which every tensor-parallel rank has a part only: those of all norms under
    sequence parallelism, and always those of queries' and keys' norms, which see this rank's heads alone.

    Megatron-Core does so after the last micro-batch, where ZeRO has long cut the gradients up.
    """
    group = parallel_state.get_tensor_model_parallel_group()

    def summed(gradient: torch.Tensor) -> torch.Tensor:
        whole = gradient.contiguous()
        dist.all_reduce(whole, group=group)
        return whole

    for name, parameter in model.named_parameters():
        of_heads = "q_layernorm" in name or "k_layernorm" in name
        if of_heads or getattr(parameter, "sequence_parallel", False):
            parameter.register_hook(summed)
