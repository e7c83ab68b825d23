"""Experts in place of an MLP: Megatron-Core's dropless layer, with losses of our own at its router.

Experts are spread over `parallel.expert` ranks of a pipeline stage, each whole on its rank; tokens go there and back
by all-to-all. Megatron-Core's own auxiliary losses are means over what one rank has of one micro-batch, so that they
change with the topology; those here (`configs.schema.ExpertsConfig`) are computed pack by pack and divided by the real
tokens of the whole global batch, which is known before the first forward pass. Their gradients are sums over ranks, as
all others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec

from configs.schema import BackboneConfig, ExpertKernel, ParallelConfig
from train.models.routing import Routing
from train.models.trunk_config import TrunkConfig

_FIGURES = 3  # of a router beside the tokens of each expert: balance, z, count


def mixture(backbone: BackboneConfig, parallel: ParallelConfig, *, grouped: bool, row_packs: int) -> dict[str, Any]:
    """Megatron's settings for the experts of a backbone; none where it has none."""
    experts = backbone.experts
    if experts is None:
        return {}
    dense = experts.dense_first
    return {
        "experts": experts,
        "row_packs": row_packs,
        "grouped_experts": grouped,
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.ffn,
        "moe_router_topk": experts.top_k,
        # Before the top k are picked or after it: after it, their weights add up to 1.
        "moe_router_pre_softmax": not experts.normalise_top_k,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        # A list says that layers differ, which Megatron then keeps one by one in checkpoints.
        "moe_layer_freq": [0] * dense + [1] * (backbone.layers - dense) if dense else 1,
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": 1,
    }


def grouped(kernel: ExpertKernel, *, half: bool) -> bool:
    """Whether a rank's experts are computed in one product; `half`: in bf16."""
    if kernel is ExpertKernel.auto:
        return half and torch.cuda.is_available()
    return kernel is ExpertKernel.grouped


def expert_layer(plain: ModuleSpec) -> ModuleSpec:
    """A layer's specification with experts in place of its MLP. The norm before them keeps its own name: there is no
    single linear layer after it to be named after."""
    layer, parts = copy(plain), copy(plain.submodules)
    parts.mlp = ExpertLayer
    parts.sharded_state_dict_keys_map = {
        key: name for key, name in parts.sharded_state_dict_keys_map.items() if not key.startswith("pre_mlp")
    }
    layer.submodules = parts
    return layer


def part_of_sequence(row: torch.Tensor, config: TrunkConfig) -> torch.Tensor:
    """What this rank has of `row`, [1, N], under sequence parallelism: [1, N / TP]."""
    if not config.sequence_parallel:
        return row
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    return row.chunk(ranks, dim=1)[parallel_state.get_tensor_model_parallel_rank()].contiguous()


def reduce_apart(model: torch.nn.Module) -> None:
    """Have gradients of experts reduced over the ranks that hold the same experts, before buffers are laid out.

    Megatron does so where experts are spread; where they are not, tensor-parallel ranks, each with tokens of its own,
    hold the same experts as well.
    """
    for module in model.modules():
        if isinstance(module, SequentialMLP):
            for parameter in module.parameters():
                parameter.allreduce = False


class ExpertLayer(MoELayer):
    """Megatron-Core's layer of experts, told which pack each token belongs to."""

    def __init__(self, config: TrunkConfig, **_: Any) -> None:
        linear = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        kind = GroupedExperts if config.grouped_experts else SequentialMLP
        super().__init__(config, MoESubmodules(experts=ModuleSpec(module=kind, submodules=linear), router=Router))

    def forward(
        self, hidden_states: torch.Tensor, intermediate_tensors: Any = None, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        """hidden_states: [n, 1, hidden]; padding_mask: int32 [1, n], the pack of each token, -1 for padding (None: one
        pack without padding) -> [n, 1, hidden], and Megatron's place for a bias."""

        def computed(hidden: torch.Tensor) -> torch.Tensor:
            weights, chosen = self.router(hidden, padding_mask)
            tokens, weights = self.preprocess(hidden, weights, chosen)
            tokens, weights = self.dispatch(tokens, weights)
            output, _ = self.routed_experts_compute(tokens, weights)
            return self.postprocess(self.combine(output), None)

        if self.moe_layer_recompute:
            return tensor_parallel.checkpoint(computed, False, hidden_states), None
        return computed(hidden_states), None


class Router(TopKRouter):
    """Picks experts in fp32, and adds up both losses and the tokens of each expert.

    Nothing is counted before `open`. A pass that the backward pass will compute again counts when it does.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.config: TrunkConfig
        self.share: torch.Tensor | None = None  # of one token in the means over the global batch
        self.seen = torch.zeros(0)  # float64 [_FIGURES + experts]: this rank's part

    def open(self, tokens: torch.Tensor) -> None:
        """Begin to count; tokens: the real ones of the global batch, a scalar."""
        self.share = 1 / tokens.clamp(min=1).float()
        self.seen = torch.zeros(_FIGURES + self.num_experts, dtype=torch.float64, device=tokens.device)

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits: fp32 [n, 1, experts]; padding_mask: as in `ExpertLayer` -> weights of the chosen experts, fp32, and
        which they are, bool, both [n, experts]."""
        weights, chosen = super().routing(logits)
        if self.share is None or (self.training and not torch.is_grad_enabled()):
            return weights, chosen
        return self._counted(weights, chosen, logits.view(-1, self.num_experts), padding_mask), chosen

    def _counted(
        self, weights: torch.Tensor, chosen: torch.Tensor, logits: torch.Tensor, packs: torch.Tensor | None
    ) -> torch.Tensor:
        """`weights`, from which the backward pass also starts into both losses."""
        assert self.config.experts is not None and self.share is not None
        balance, z = self.config.experts.balance, self.config.experts.z
        if packs is None:
            packs = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
        numbers = torch.arange(self.config.row_packs, dtype=torch.int32, device=logits.device)
        member = (packs.view(1, -1) == numbers[:, None]).float()  # [packs, n], padding in none
        with torch.no_grad():
            picked = member @ chosen.float()  # [packs, experts], exact: small whole numbers
            length = member.sum(1, keepdim=True)
            mine, everywhere = picked.sum(0), torch.cat([picked, length], dim=1)
            if self.tp_cp_group.size() > 1:  # the other ranks' parts of the same packs
                dist.all_reduce(everywhere, group=self.tp_cp_group)
            # Of each pack: experts x f_e, in which a pack's mean P_e counts as often as it has tokens.
            factors = everywhere[:, :-1] * (self.num_experts / self.topk) / everywhere[:, -1:].clamp(min=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(balance or z)):
            likely = member @ torch.softmax(logits, dim=-1)
            balances = (factors * likely).sum()
            zs = (member.sum(0) * torch.logsumexp(logits, dim=-1).square()).sum()
            loss = self.share * (balance * balances + z * zs)
        with torch.no_grad():
            self.seen += torch.cat([torch.stack([balances, zs, length.sum()]), mine]).double()
        return MoEAuxLossAutoScaler.apply(weights, loss) if loss.requires_grad else weights


class GroupedExperts(SequentialMLP):
    """A rank's experts, each product for all of them at once by PyTorch's grouped_mm.

    They keep the parameters, and so the checkpoints and optimiser states, of `SequentialMLP`; the price is a copy of
    the weights side by side in each pass.
    """

    def forward(
        self, permuted_local_hidden_states: torch.Tensor, tokens_per_expert: torch.Tensor, permuted_probs: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Tokens sorted by expert [m, hidden], how many each has [experts] and their weights [m] -> [m, hidden]."""
        tokens = permuted_local_hidden_states
        if not len(tokens):  # the experts of this rank take part in the backward pass all the same
            return super().forward(tokens, tokens_per_expert, permuted_probs)
        ends = tokens_per_expert.cumsum(0).to(tokens.device, torch.int32)
        inner = F.grouped_mm(tokens, self._side_by_side("linear_fc1"), offs=ends)
        gate, up = inner.chunk(2, dim=-1)
        inner = (F.silu(gate) * up * permuted_probs[:, None]).to(tokens.dtype)
        return F.grouped_mm(inner, self._side_by_side("linear_fc2"), offs=ends), None

    def _side_by_side(self, linear: str) -> torch.Tensor:
        """Weights of a linear layer of all experts: [experts, in, out]."""
        return torch.stack([getattr(expert, linear).weight for expert in self.local_experts]).transpose(-2, -1)


class RoutingAccount:
    """What the routers of this rank's model chunks add up over a step or a validation pass; all ranks open and close it
    together."""

    def __init__(self, models: Iterable[torch.nn.Module], backbone: BackboneConfig) -> None:
        self._routers = [module for model in models for module in model.modules() if isinstance(module, Router)]
        self._experts = backbone.experts
        self._layers = backbone.layers

    def open(self, tokens: torch.Tensor) -> None:
        """tokens: the real ones of the global batch, a float64 scalar on the device."""
        self._device = tokens.device
        for router in self._routers:
            router.open(tokens)

    def close(self) -> Routing:
        """The figures of all ranks. Collective where the model has experts."""
        if self._experts is None:
            return Routing()
        table = torch.zeros(self._layers, _FIGURES + self._experts.count, dtype=torch.float64, device=self._device)
        for router in self._routers:
            assert router.layer_number is not None
            table[router.layer_number - 1] = router.seen
            router.share = None
        dist.all_reduce(table)
        balance, z, count = table[:, :_FIGURES].sum(0).tolist()
        chosen: Sequence[Sequence[float]] = table[self._experts.dense_first :, _FIGURES:].tolist()
        return Routing(balance, z, count, chosen)
