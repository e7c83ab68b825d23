"""Names that Megatron-Core 0.16.1 leaves undefined without TransformerEngine, and asks for on any device."""

from __future__ import annotations

import contextlib
from typing import Any


def fill_in() -> None:
    """Give these names the meaning "there is none". After `emulate_cuda`, which has to come before Megatron's imports.
    Idempotent; does nothing where TransformerEngine is installed."""
    import megatron.core.tensor_parallel.random as random_state
    import megatron.core.transformer.moe.moe_utils as experts

    router: Any = experts
    if not hasattr(router, "te_general_gemm"):  # asked by the router of experts
        router.te_general_gemm = None
    names: Any = random_state
    if not hasattr(names, "FP8GlobalStateManager"):  # asked by selective recompute
        names.FP8GlobalStateManager = _NoFp8
        names.activation_recompute_forward = names.fp8_autocast = lambda **_: contextlib.nullcontext()


class _NoFp8:
    @staticmethod
    def is_fp8_enabled() -> bool:
        return False

    @staticmethod
    def get_fp8_recipe() -> None:
        return None
