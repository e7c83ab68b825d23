import pickle

import torch

from ..common.recipe import Format
from . import distributed, fp8, ops, tensor  # noqa: F401
from .fp8 import AUTOCAST, fp8_autocast, fp8_model_init  # noqa: F401


def rounded(given, dtype):
    scale = torch.finfo(dtype).max / given.abs().amax().float().clamp(min=1e-12)
    return ((given.float() * scale).to(dtype).float() / scale).to(given.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, rounded_weight, gradients, fused):
        x = rounded(x, torch.float8_e4m3fn) if gradients else x
        ctx.kept = x, weight, rounded_weight, gradients, fused
        return x @ rounded_weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight, rounded_weight, gradients, fused = ctx.kept
        gradient = rounded(gradient, gradients) if gradients else gradient
        of_weight = gradient.flatten(0, -2).t() @ x.flatten(0, -2)
        if fused:
            weight.main_grad.add_(of_weight)
            weight.grad_added_to_main_grad = True
            of_weight = torch.empty_like(weight)
        return gradient @ rounded_weight, of_weight, None, None, None


class Linear(torch.nn.Module):
    def __init__(
        self,
        in_features,
        out_features,
        sequence_parallel,
        fuse_wgrad_accumulation,
        tp_group,
        tp_size,
        get_rng_state_tracker,
        rng_tracker_name,
        init_method,
        bias,
        return_bias,
        params_dtype,
        parallel_mode,
        device,
    ):
        super().__init__()
        assert tp_size == 1 and not sequence_parallel and not return_bias and parallel_mode in ("column", "row")
        self.in_features, self.out_features, self.use_bias, self.tp_size = in_features, out_features, bias, tp_size
        self.parallel_mode, self.fuse_wgrad_accumulation, self.save_original_input = (
            parallel_mode,
            fuse_wgrad_accumulation,
            False,
        )
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        init_method(self.weight)
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, int(parallel_mode == "row")
        self.bias = torch.nn.Parameter(torch.zeros(out_features, dtype=params_dtype)) if bias else None
        self.recipe, self.cached = None, None  # of the last pass; the weight as fp8 has it

    def forward(self, x, is_first_microbatch):
        self.recipe = AUTOCAST[-1] if AUTOCAST else None
        gradients, weight = None, self.weight
        if self.recipe is not None:
            hybrid = self.recipe.fp8_format is Format.HYBRID
            gradients = torch.float8_e5m2 if hybrid else torch.float8_e4m3fn
            if is_first_microbatch is not False:
                self.cached = rounded(self.weight.detach(), torch.float8_e4m3fn)
            weight = self.cached
        out = _Product.apply(x, self.weight, weight, gradients, self.fuse_wgrad_accumulation)
        return out if self.bias is None else out + self.bias

    def get_extra_state(self):
        if self.recipe is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(pickle.dumps({"recipe": self.recipe})), dtype=torch.uint8)

    def set_extra_state(self, state):
        if state.numel():
            self.recipe = pickle.loads(state.numpy().tobytes())["recipe"]


class _NotHere(torch.nn.Module):
    pass


LayerNormLinear = GroupedLinear = DotProductAttention = RMSNorm = LayerNorm = _NotHere
