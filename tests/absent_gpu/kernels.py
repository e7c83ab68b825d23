"""What torch.compile makes for the device: compiled down to its machine code, and not run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.absent_gpu.device import Properties
from tests.absent_gpu.tensors import Account


@dataclass(frozen=True)
class Kernel:
    """registers: of a thread; spilled: bytes of a thread that registers did not hold; shared: bytes of a block. Of
    several ways to cut the work, which a GPU would time, the one that spills least."""

    name: str
    registers: int
    spilled: int
    shared: int
    warps: int


@contextmanager
def compiled(properties: Properties, account: Account) -> Iterator[list[Kernel]]:
    """Inside, kernels are compiled as they are first asked for, and launches go into `account`."""
    import torch._inductor.config as inductor
    import triton
    from torch._C._dynamo import guards
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.backends.compiler import GPUTarget

    kernels: list[Kernel] = []
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    target = GPUTarget("cuda", properties.capability, properties.warp_size)
    limits = {"max_shared_mem": properties.shared_memory_per_block_optin}
    driver = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda _=None: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        utils=SimpleNamespace(get_device_properties=lambda _: limits),
    )

    def compile_all(tuner: Any, *_: Any, **__: Any) -> None:
        with tuner.lock:
            tuner._precompile_worker()
        ways = [_measured(tuner.fn.__name__, one.kernel, tool) for one in tuner.compile_results]
        kernels.append(min(ways, key=lambda kernel: kernel.spilled))

    def launch(tuner: Any, *arguments: Any, **_: Any) -> None:
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        account.add(tuner.fn.__name__, sum(one.numel() * one.element_size() for one in tensors))

    def empty(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="cuda")

    def reinterpret(tensor: torch.Tensor, size: Any, stride: Any, further: int = 0) -> torch.Tensor:
        return tensor.detach().as_strided(size, stride, tensor.storage_offset() + further)

    settings = {
        "compile_threads": 1,
        "use_static_triton_launcher": False,  # its kernels do not show what was compiled
        "joint_graph_constant_folding": False,  # computes on the device
        "force_disable_caches": True,
    }
    with ExitStack() as stack:
        stack.enter_context(inductor.patch(settings))
        put = mock.patch.object
        stack.enter_context(put(CachingAutotuner, "precompile", compile_all))
        stack.enter_context(put(CachingAutotuner, "run", launch))
        stack.enter_context(put(guards, "_empty_strided_cuda", empty))
        stack.enter_context(put(guards, "_reinterpret_tensor", reinterpret))
        stack.enter_context(put(triton_helpers, "set_driver_to_gpu", lambda: None))
        for passes in (joint_graph, post_grad):  # patterns are traced with tensors of the device
            stack.enter_context(put(passes, "lazy_init", lambda *_: None))
        triton.runtime.driver.set_active(driver)
        yield kernels


def _measured(name: str, kernel: Any, tool: Path) -> Kernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", told.stdout)[-1])
    return Kernel(name, registers, stack, kernel.metadata.shared, kernel.metadata.num_warps)
