"""Names of dtypes as manifests, cards and config.json say them: torch's, without the package."""

from __future__ import annotations

import torch

from configs.schema import Precision

DTYPES = {Precision.fp32: "float32", Precision.bf16: "bfloat16"}
"""Names of the dtypes that weights may be asked for in."""


def name_of(dtype: torch.dtype) -> str:
    """ "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
