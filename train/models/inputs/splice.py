"""An encoder's vectors in packed sequences: at the places that a batch names, in place of token embeddings."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from torch import nn

from configs.audio_input import AudioInput
from data_pipeline.batch import Splice
from train.models.inputs.adapter import Adapter
from train.models.inputs.encoder import Encoder
from train.models.inputs.runs import Runs


def heard(audio: AudioInput, adapter: Adapter, encoder: Encoder | None, splice: Splice | None) -> torch.Tensor:
    """What is heard at each place of `splice`, [P, hidden]; without one, at one place of silence, for its gradients.

    Every rank that holds the modules runs all of them in every forward pass, whatever it was given: ranks that shard
    parameters gather them together, and ranks that reduce gradients wait for all of these.
    """
    dtype = next(adapter.parameters()).dtype
    device = next(adapter.parameters()).device
    if splice is None:
        frames = torch.zeros(audio.stride, audio.width, device=device)
        splice = Splice(
            vectors=frames,
            runs=torch.tensor([0, len(frames)], device=device),
            places=torch.zeros(0, dtype=torch.int64, device=device),
            frames=torch.tensor([len(frames)], device=device),
            longest=len(frames),
        )
    runs, counts = Runs(splice.vectors.to(dtype), splice.runs.long(), splice.longest), splice.frames
    if encoder is not None:
        runs, counts = encoder(runs), -(-counts // audio.inputs)
    places: torch.Tensor = adapter(runs, counts)
    return places


def spliced(hidden: torch.Tensor, vectors: torch.Tensor, splice: Splice | None, *, cut: bool) -> torch.Tensor:
    """`hidden` with `vectors`, [P, h], at the places of `splice`; without one, as it was, and dependent on them.

    hidden: [N, 1, h], or `cut` over the tensor-parallel ranks' sequence, [N / TP, 1, h].
    """
    vectors = vectors.to(hidden.dtype)
    if splice is None:
        return hidden + 0.0 * vectors.sum()
    ranks = parallel_state.get_tensor_model_parallel_world_size() if cut else 1
    first = len(hidden) * parallel_state.get_tensor_model_parallel_rank() if cut else 0
    row = vectors.new_zeros(len(hidden) * ranks, vectors.shape[1]).index_copy(0, splice.places, vectors)
    taken = torch.zeros(len(row), dtype=torch.bool, device=row.device).index_fill(0, splice.places, True)
    mine = slice(first, first + len(hidden))
    return torch.where(taken[mine, None, None], row[mine, None], hidden)


def mark_partial(modules: list[nn.Module]) -> None:
    """Have gradients of `modules`, whole on every tensor-parallel rank, added up over them: under sequence parallelism
    each sees those of its part of the sequence alone."""
    for module in modules:
        for parameter in module.parameters():
            parameter.sequence_parallel = True  # type: ignore[attr-defined]
