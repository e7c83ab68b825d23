"""What makes a run repeat bit for bit on the same topology: settings of PyTorch and of the libraries below it."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch

from runtime.exits import BadInput

# Each is read once, when its library starts, and has to be there before.
_SETTINGS = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS picks the same workspace, and so the same order of sums
    "NCCL_ALGO": "^NVLS,NVLSTree",  # sums made inside a switch come in any order
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",  # TransformerEngine's attention
}


def be_deterministic(environment: MutableMapping[str, str]) -> None:
    """Ask for deterministic kernels and collectives. Raises BadInput where `environment` already asks for others."""
    chosen = environment.get("NCCL_ALGO", "^nvls").lower()
    if chosen.startswith("^") != ("nvls" in chosen) or (not chosen.startswith("^") and "collnet" in chosen):
        raise BadInput(
            f"train.deterministic=true, but NCCL_ALGO={environment['NCCL_ALGO']} lets switches sum, in any order; "
            "unset one of them"
        )
    if environment.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0") != "0":
        raise BadInput("train.deterministic=true, but NVTE_ALLOW_NONDETERMINISTIC_ALGO is not 0; unset one of them")
    if environment.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8") not in (":4096:8", ":16:8"):
        raise BadInput(
            f"train.deterministic=true, but CUBLAS_WORKSPACE_CONFIG={environment['CUBLAS_WORKSPACE_CONFIG']}; it has "
            "to be :4096:8 or :16:8"
        )
    for name, value in _SETTINGS.items():
        environment.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
