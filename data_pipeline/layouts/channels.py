"""Two channels of a conversation side by side, frame by frame (dGSLM, arXiv:2203.16502, as in fairseq's code)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.batch import Sample, Target
from data_pipeline.layouts.assembly import check_weight
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

CHANNELS = 2


def channels(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    block: int = 6144,
    longest_run: int = 256,
    delay: int = 1,
    edge_weight: float = 1.0,
    duration_weight: float = 1.0,
    next_weight: float = 0.0,
) -> list[Sample]:
    """Samples of `block` frames and the rest, of a document with one spoken utterance for each of channels 0 and 1
    (others give none), both cut to the shorter. Both channels have the ids of the one codebook; tokens are
    [frames, 2], with no special tokens.

    Target "edge", int64 [frames, 2]: the unit of the next frame, where that begins a run of equal units or the frame
    is the first of its block. Target "duration", float32 [frames, 2]: how many frames that run lasts from there, at
    most `longest_run`, read on beyond the block where it does not end in it; it stands `delay` frames later, when the
    unit has been heard, and is dropped where that is outside the block. The weights are of an edge, of a duration,
    and of every next unit as ordinary label. audio_seconds counts both channels.
    """
    for option, weight in (
        ("edge_weight", edge_weight),
        ("duration_weight", duration_weight),
        ("next_weight", next_weight),
    ):
        check_weight(option, weight)
    if block < 2 or longest_run < 1 or delay < 0:
        raise BadInput(
            f"channels: need block from 2, longest_run from 1, delay from 0; got {block}, {longest_run}, {delay}"
        )
    if len(vocabulary.codebooks) != 1 or vocabulary.codebooks[0].rows != 1:
        names = ", ".join(f"{book.name} of {book.rows} rows" for book in vocabulary.codebooks)
        raise BadInput(f"channels: needs a vocabulary with one codebook of one row, and this one has {names}")
    spoken = {utterance.channel: utterance for utterance in utterances if utterance.spoken}
    if sorted(spoken) != list(range(CHANNELS)) or sum(utterance.spoken for utterance in utterances) != CHANNELS:
        return []
    streams = [lay_groups(spoken[channel], vocabulary).reshape(-1) for channel in range(CHANNELS)]
    frames = np.stack([stream[: min(map(len, streams))] for stream in streams], axis=1)
    seconds = CHANNELS / vocabulary.codebooks[0].rate
    samples = []
    for number, start in enumerate(range(0, len(frames), block)):
        tokens = frames[start : start + block]
        edge, duration = _targets(frames[start + 1 :], len(tokens), longest_run, delay)
        samples.append(
            Sample(
                tokens=tokens,
                loss_weight=np.full(tokens.shape, next_weight, np.float32),
                modality=vocabulary.modality_of(tokens),
                group=np.arange(len(tokens), dtype=np.int32),
                key=f"{utterances[0].document}/{number}",
                audio_seconds=len(tokens) * seconds,
                targets={
                    "edge": Target(edge.values, edge.weight * np.float32(edge_weight)),
                    "duration": Target(duration.values, duration.weight * np.float32(duration_weight)),
                },
            )
        )
    return samples


def _targets(following: np.ndarray, length: int, longest: int, delay: int) -> tuple[Target, Target]:
    """Edges and durations, with weights of 0 and 1, of a block of `length` frames, where `following` [n, channels] is
    everything after its first frame."""
    shape = (length, following.shape[1])
    units, edges = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    durations, read = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for channel, stream in enumerate(following.T):
        ahead = stream[:length]
        units[: len(ahead), channel] = ahead
        at = np.flatnonzero(np.diff(ahead, prepend=-1))
        edges[at, channel] = 1
        ends = np.append(np.flatnonzero(np.diff(stream)) + 1, len(stream))
        runs = np.minimum(ends[np.searchsorted(ends, at, side="right")] - at, longest)
        inside = at + delay < length
        durations[at[inside] + delay, channel] = runs[inside]
        read[at[inside] + delay, channel] = 1
    return Target(units, edges), Target(durations, read)
