"""What a GPU computes in few kernels, against float64: compiled where there is one, else the same functions as written;
and that a step's micro-batches fetch nothing to the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_ranks
from tests.train.test_vocabulary_loss import Case, a_case, assert_close, cases, exact
from train.models.attention.positions import rotary_frequencies, rotary_tables, rotate_both
from train.models.heads import softmax_passes, vocabulary_loss

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loss_in_one_kernel(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The loss's values and gradients with the passes over logits that a GPU makes."""
    states, weight = (part.detach().to(DEVICE, dtype).requires_grad_() for part in case[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_loss, "first_pass", lambda *given: (*softmax_passes.in_one_kernel(*given), None))
        total, cross_entropy, z = vocabulary_loss.vocabulary_loss(states, weight, case[2].to(DEVICE))
    total.backward()
    found = {"cross_entropy": cross_entropy, "z": z, "total": total, "states": states.grad, "weight": weight.grad}
    return {name: value.detach().cpu() for name, value in found.items() if value is not None}


@settings(max_examples=40 if DEVICE.type == "cpu" else 5)
@given(case=cases)
def test_passes_over_logits_match_float64(case: Case) -> None:
    assert_close(loss_in_one_kernel(case), exact(*case), 2e-5)


@pytest.mark.parametrize("chunk", [0, 300])
def test_passes_over_many_logits(chunk: int) -> None:
    case = a_case(1000, 16, 5000, seed=1, smoothing=0.1, z=1e-3, chunk=chunk)
    assert_close(loss_in_one_kernel(case), exact(*case), 2e-5)


def test_passes_in_bf16_add_up_in_fp32() -> None:
    states, weight, targets = a_case(400, 16, 64, seed=3, smoothing=0.1, z=1e-3, chunk=4)
    case = states.bfloat16(), weight.bfloat16(), targets
    assert_close(loss_in_one_kernel(case, torch.bfloat16), exact(*case), 2e-2)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_queries_and_keys_are_turned_together(interleaved: bool, dtype: torch.dtype, tolerance: float) -> None:
    """As complex numbers turned by e^(i position frequency), in float64; gradients turn back."""
    positions = torch.cat([torch.arange(40), torch.arange(23)])
    frequencies, factor = rotary_frequencies(64, 10000.0)
    tables = rotary_tables(positions.to(DEVICE), frequencies, factor, torch.float32)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(63, heads, 64, generator=generator).to(dtype) for heads in (6, 2)]
    ours = [part.to(DEVICE).requires_grad_() for part in given]
    turned = rotate_both(*ours, tuple(table.to(dtype) for table in tables), interleaved)
    torch.autograd.backward(turned, [part.detach() for part in turned])
    angles = torch.polar(torch.ones(63, 1, 32, dtype=torch.float64), positions[:, None, None] * frequencies.double())
    for x, mine, result in zip(given, ours, turned, strict=True):
        pairs = x.double().unflatten(-1, (32, 2) if interleaved else (2, 32))
        first, second = pairs.unbind(-1 if interleaved else -2)
        exactly = torch.complex(first, second) * angles
        parts = torch.stack([exactly.real, exactly.imag], dim=-1 if interleaved else -2).flatten(-2)
        assert (result.detach().cpu().double() - parts).abs().max() <= tolerance * parts.abs().max()
        assert mine.grad is not None
        assert (mine.grad.cpu().double() - x.double()).abs().max() <= 3 * tolerance * x.double().abs().max()


def test_norm_and_scale_of_many_tensors() -> None:
    from train.engines.cuda_on_cpu import emulate_cuda

    emulate_cuda()
    from train.engines.megatron_optimizer import _norm_of_all, _scale_all

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in (3, 1, 4097, 20)]
    norm = torch.cat([tensor.double() for tensor in tensors]).norm()
    mine = [tensor.to(DEVICE, copy=True) for tensor in tensors]
    found, _ = _norm_of_all(0, None, [mine], False)
    assert found.shape == (1,) and found.dtype == torch.float32
    assert found.item() == pytest.approx(norm.item(), rel=1e-6)
    apart = [torch.empty_like(tensor) for tensor in mine]
    _scale_all(0, None, [mine, apart], 0.5)
    _scale_all(0, None, [mine, mine], 0.5)
    for tensor, scaled, other in zip(tensors, mine, apart, strict=True):
        assert torch.equal(scaled.cpu(), tensor * 0.5) and torch.equal(other, scaled)


# --- a step's micro-batches -----------------------------------------------------------------------------------------


class Fetched(TorchDispatchMode):
    """Operations that make the host wait for a GPU: their results, or the sizes of them, are needed at once."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.all = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.all += 1
        if name in self.WAIT:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def fetched_in_a_step(positions: str) -> tuple[int, list[str], list[str]]:
    """How many operations two micro-batches are, those of them that wait, and those that wait in the gradient's norm
    and in clipping."""
    from configs.schema import Precision
    from data_pipeline.batch import collate
    from tests.benchmarks.gpu import shapes, training
    from train.engines import megatron_optimizer, process_groups

    config = training.config_of(shapes.backbone("3b", positions, shapes.TINY), shapes.TINY, packs=1)
    config.train.precision = Precision.fp32
    engine, _ = training.build(config, shapes.TINY, process_groups.join(config.parallel))
    passes, norms = Fetched(), Fetched()

    def watched(watch: Fetched, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            with watch:
                return function(*given, **named)

        return call

    engine._schedule = watched(passes, engine._schedule)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gradient_norm", "clip_grad_by_total_norm_fp32"):
            patch.setattr(megatron_optimizer, name, watched(norms, getattr(megatron_optimizer, name)))
        packs = training.data_of(shapes.TINY, 1, 2)[0]
        engine.train_step([collate([pack]) for pack in packs], 1e-3, [], lambda _: True)
    process_groups.leave()
    return passes.all, passes.names, norms.names


@pytest.mark.parametrize("positions", ["rope", "sqrt_alibi"])
def test_micro_batches_fetch_nothing_and_the_norm_one_number(positions: str) -> None:
    operations, waits, of_norm = run_ranks(fetched_in_a_step, 1, positions)[0]
    assert operations > 100
    assert waits == []
    assert of_norm == ["_local_scalar_dense"]
