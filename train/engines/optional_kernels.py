"""Optional GPU libraries: found at run time, said once, never required."""

from __future__ import annotations

import importlib.util
import warnings

# What has to be importable for each; `apex` alone would also match an unrelated project of that name.
_LIBRARIES = {"TransformerEngine": "transformer_engine", "NVIDIA Apex": "amp_C", "flash-attn": "flash_attn_2_cuda"}


def missing() -> list[str]:
    """Names of the optional libraries that are not installed."""
    return [name for name, module in _LIBRARIES.items() if importlib.util.find_spec(module) is None]


def describe() -> str:
    """One line for the log."""
    absent = missing()
    found = [name for name in _LIBRARIES if name not in absent]
    parts = [f"found {', '.join(found)}"] if found else []
    parts += [f"without {', '.join(absent)} (PyTorch's own kernels serve instead)"] if absent else []
    return "optional kernels: " + "; ".join(parts)


def hush_megatron() -> None:
    """Megatron-Core warns about absent libraries from several modules on every rank; `describe` says it once. Its
    calls of deprecated names are nothing that a user could mend."""
    for message in (".*Transformer Engine", ".*Apex", ".*full scope is deprecated"):
        warnings.filterwarnings("ignore", message=message)
    for module in ("megatron", "torch.distributed.checkpoint"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
