"""Stands in for TransformerEngine, which needs a GPU, where Megatron-Core's wrappers of it are tried on a CPU: one
process, products whose factors are rounded to fp8 with one scale a tensor. It has the arguments, the cache of weights,
the gradient accumulation and the `_extra_state` of version 2.6's `Linear`; it says nothing of its kernels."""

__version__ = "2.6.0"

from . import common, pytorch  # noqa: F401
