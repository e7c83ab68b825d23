"""Megatron-Core asks for CUDA by name; on a machine without a GPU this maps those requests to the CPU.

The only module that does so. `emulate_cuda()` runs before the first import of Megatron modules that a rank uses and
does nothing where CUDA is there. Names were found against Megatron-Core 0.16.1 without TransformerEngine or Apex.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._device import _device_constructors

_CPU = torch.device("cpu")
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "empty_like", "zeros_like", "eye")


class _Stream:
    """Stands in for a CUDA stream or event: on the CPU everything has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    wait_stream = wait_event = synchronize = record = wait = _nothing

    def record_event(self, *_: Any) -> _Stream:
        return _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: _Stream) -> float:
        return 0.0


def emulate_cuda() -> bool:
    """Map CUDA requests to the CPU if there is no GPU. Returns whether the CPU is emulating. Idempotent."""
    if torch.cuda.is_available():
        return False
    if not getattr(torch, "_megaphone_cuda_on_cpu", False):
        torch._megaphone_cuda_on_cpu = True  # type: ignore[attr-defined]
        _map_torch_cuda()
        _map_devices()
        _map_megatron()
    return True


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Have `torch.compile` give back what it is given, where there is no GPU: there compiling costs seconds and a C++
    compiler, and wins nothing. For libraries that compile functions as they are imported."""
    if torch.cuda.is_available():
        yield
        return
    torch_module: Any = torch
    compile_function = torch.compile
    torch_module.compile = lambda function=None, **_: function if function else (lambda decorated: decorated)
    try:
        yield
    finally:
        torch_module.compile = compile_function


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


def _map_torch_cuda() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.device_count = lambda: 1
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, lambda *_, **__: None)  # one function a name: TorchDynamo refuses to see one twice
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.current_stream = lambda *_, **__: _Stream()
    cuda.default_stream = lambda *_, **__: _Stream()
    cuda.stream = lambda *_, **__: contextlib.nullcontext()
    cuda.Stream = cuda.Event = _Stream
    cuda.FloatTensor, cuda.IntTensor, cuda.LongTensor = torch.FloatTensor, torch.IntTensor, torch.LongTensor


def _map_devices() -> None:
    """Tensor factories and moves that name a CUDA device take the CPU; `Tensor.type` names types as CUDA would."""

    def on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(factory)
        def make(*args: Any, **kwargs: Any) -> torch.Tensor:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = _CPU
            kwargs.pop("pin_memory", None)
            return factory(*args, **kwargs)

        return make

    _device_constructors()  # `with torch.device(...)` looks factories up once, and has to find the real ones
    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))

    move, type_of = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(move)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return move(self, *args, **kwargs)

    @functools.wraps(type_of)
    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    tensor: Any = torch.Tensor
    tensor.to, tensor.type, tensor.cuda = to, cuda_type, lambda self, *_, **__: self


def _map_megatron() -> None:
    """Megatron's own view of the random state."""
    with nothing_compiled():  # Megatron compiles its fusions as it loads
        import megatron.core.tensor_parallel.random as random_state

    names: Any = random_state
    names._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    names._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    _map_expert_dispatch()


def _map_expert_dispatch() -> None:
    """How many tokens go where is read from the device as NumPy arrays; on the CPU Megatron would leave tensors, which
    no collective takes as split sizes."""
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    def on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    names: Any = dispatcher
    names.maybe_move_tensor_to_cpu = on_host
