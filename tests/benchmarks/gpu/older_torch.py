"""Megaphone is made for torch 2.13; a machine's image may have 2.11, which lacks one argument that we give."""

from __future__ import annotations

import inspect
from typing import Any


def mend() -> list[str]:
    """Let our kernels run there. Returns what was done, for the record; does nothing on torch 2.13."""
    from torch.nn.attention import varlen

    if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        return []
    attend = varlen.varlen_attn

    def varlen_attn(*arguments: Any, enable_gqa: bool = False, **named: Any) -> Any:
        return attend(*arguments, **named)  # flash attention shares heads of keys by itself, whether told so or not

    module: Any = varlen
    module.varlen_attn = varlen_attn
    return ["varlen_attn without enable_gqa"]
