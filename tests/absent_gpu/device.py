"""What Python code asks of CUDA, answered for one GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True)
class Properties:
    """As `torch.cuda.get_device_properties` says them: sizes in bytes."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    shared_memory_per_block_optin: int = 232448
    warp_size: int = 32

    @property
    def capability(self) -> int:
        return 10 * self.major + self.minor


# NVIDIA's H200 data sheet, and the CUDA programming guide's table of compute capability 9.0.
H200 = Properties("NVIDIA H200", 9, 0, multi_processor_count=132, total_memory=141 * 10**9)


class _Stream:
    """A stream or an event: what was asked of it has happened already."""

    device, device_index, device_type, stream_id, cuda_stream = torch.device("cuda", 0), 0, 1, 0, 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    wait_stream = wait_event = synchronize = record = wait = record_event = _nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: _Stream) -> float:
        return 0.0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Generator:
    """Random numbers of the device: it has none."""

    def get_state(self) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_state(self, _: torch.Tensor) -> None: ...


@contextmanager
def pretended(properties: Properties) -> Iterator[None]:
    """Inside, there is this GPU."""
    from torch._dynamo.device_interface import CudaInterface

    capability = properties.major, properties.minor
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "get_device_name": properties.name,
        "get_rng_state": _Generator().get_state(),
        **dict.fromkeys(("current_stream", "default_stream", "stream"), _Stream()),
        "max_memory_reserved": 0,
        **dict.fromkeys(("set_device", "synchronize", "empty_cache", "set_rng_state", "_lazy_init"), None),
        **dict.fromkeys(("manual_seed", "manual_seed_all"), None),
    }
    compiler = {name: answers[name] for name in ("current_device", "device_count", "set_device", "synchronize")}
    compiler |= {"get_device_properties": properties, "exchange_device": 0, "maybe_exchange_device": 0}
    compiler |= {"is_bf16_supported": True, "get_raw_stream": 0}
    with ExitStack() as stack:

        def put(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        put(torch.cuda, **{name: _always(value) for name, value in answers.items()})
        put(torch.cuda, Stream=_Stream, Event=_Stream, default_generators=(_Generator(),))
        put(torch.cuda, _DeviceGuard=lambda _: contextlib.nullcontext())
        put(CudaInterface, **{name: staticmethod(_always(value)) for name, value in compiler.items()})
        put(CudaInterface.Worker, current_device=staticmethod(_always(0)))
        put(CudaInterface.Worker, get_device_properties=staticmethod(_always(properties)))
        put(torch.version, cuda="13.0")
        put(torch._C, _cuda_getCurrentRawStream=_always(0), _cuda_getDevice=_always(0))
        put(torch.Tensor, pin_memory=lambda self, *_: self)
        yield


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value
