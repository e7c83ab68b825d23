"""The CUDA names that are mapped leave everything else as it was."""

from __future__ import annotations

import torch


def test_requests_for_cuda_are_served_by_the_cpu() -> None:
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.ones(2).to("cuda").device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
    assert not torch.cuda.is_available(), "libraries that ask first must not think there is a GPU"


def test_device_contexts_still_work() -> None:
    """transformers builds models in one; where it is ignored, buffers come out as garbage."""
    with torch.device("meta"):
        assert torch.arange(3).device.type == "meta"
        assert torch.empty(3).device.type == "meta"
        assert torch.nn.Linear(2, 2).weight.device.type == "meta"


def test_factories_keep_their_meaning() -> None:
    assert torch.full((2,), 3.0, dtype=torch.float64).tolist() == [3.0, 3.0]
    assert torch.arange(2, 8, 3).tolist() == [2, 5]
    assert torch.tensor([1], dtype=torch.int32).dtype is torch.int32
