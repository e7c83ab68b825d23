"""From probabilities of speech to segments: pure functions over one array, [frames of 32 ms], of a whole recording.

Three hours are 337,500 of them, so that the whole of a recording is seen when it is decided where to cut.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from configs.schema import CutConfig
from data_pipeline.cutting.silero import FRAME_SECONDS

_SMOOTHING = 5  # frames: a cut inside speech goes where it is weakest for a moment, not for one frame


def speech_of(probabilities: np.ndarray, config: CutConfig) -> list[tuple[int, int]]:
    """Stretches of speech as frames [first, last). One begins with a frame of at least `threshold` and goes on until
    `shortest_silence` passes in which no frame reaches `lower_threshold`; that silence is not part of it. Stretches
    shorter than `shortest_speech` are none."""
    quiet_frames = max(round(config.shortest_silence / FRAME_SECONDS), 1)
    fewest = config.shortest_speech / FRAME_SECONDS
    loud = np.flatnonzero(probabilities >= config.lower_threshold)
    if not len(loud):
        return []
    # Frames above the lower threshold, parted where the silence between two of them is long enough.
    borders = np.flatnonzero(np.diff(loud) > quiet_frames)
    firsts = loud[np.concatenate(([0], borders + 1))]
    lasts = loud[np.concatenate((borders, [len(loud) - 1]))] + 1
    stretches = []
    for begin, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        begins = np.flatnonzero(probabilities[begin:last] >= config.threshold)
        if len(begins) and last - (begin + int(begins[0])) >= fewest:
            stretches.append((begin + int(begins[0]), last))
    return stretches


def segments_of(probabilities: np.ndarray, config: CutConfig) -> list[tuple[float, float]]:
    """Segments in seconds from the start of the recording, in order, apart from each other, none longer than
    `longest`.

    Speech whose pauses are at most `longest_silence` stays together as far as `longest` allows. What is longer is cut
    at its longest pause in the second half of what fits, else at its longest pause in the first half, else inside
    speech where the detector is least sure of it. Each side keeps `padding` of what surrounds it, at most up to the
    middle of the pause.
    """
    room = int((config.longest - 2 * config.padding) / FRAME_SECONDS)
    farthest = config.longest_silence / FRAME_SECONDS
    cores: list[tuple[int, int]] = []
    run: list[tuple[int, int]] = []
    for stretch in speech_of(probabilities, config):
        if run and stretch[0] - run[-1][1] > farthest:
            cores += _fitted(run, room, probabilities)
            run = []
        run.append(stretch)
    if run:
        cores += _fitted(run, room, probabilities)
    return _padded(cores, len(probabilities), config.padding)


def _fitted(run: list[tuple[int, int]], room: int, probabilities: np.ndarray) -> list[tuple[int, int]]:
    """A run of stretches as segments of at most `room` frames."""
    cores = []
    left = list(run)
    while left and left[-1][1] - left[0][0] > room:
        begin = left[0][0]
        pauses = [(after[0] - before[1], number, before[1]) for number, (before, after) in enumerate(pairwise(left), 1)]
        fitting = [pause for pause in pauses if pause[2] - begin <= room]
        late = [pause for pause in fitting if pause[2] - begin >= room / 2]
        if fitting:
            _, number, end = max(late or fitting)
            cores.append((begin, end))
            left = left[number:]
        else:
            at = _weakest(probabilities, begin, left[0][1], room)
            cores.append((begin, at))
            left[0] = (at, left[0][1])
    return [*cores, (left[0][0], left[-1][1])]


def _weakest(probabilities: np.ndarray, begin: int, end: int, room: int) -> int:
    """The frame in the second half of what fits at which speech is least sure."""
    first, last = begin + max(room // 2, 1), min(begin + room, end - 1)
    around = np.convolve(probabilities[begin:end], np.full(_SMOOTHING, 1 / _SMOOTHING), mode="same")
    return first + int(np.argmin(around[first - begin : last - begin + 1]))


def _padded(cores: list[tuple[int, int]], frames: int, padding: float) -> list[tuple[float, float]]:
    ends = [0, *(core[1] for core in cores)]
    begins = [*(core[0] for core in cores), frames]
    padded = []
    for number, (begin, end) in enumerate(cores):
        before = (begin - ends[number]) * FRAME_SECONDS / (2 if number else 1)
        after = (begins[number + 1] - end) * FRAME_SECONDS / (2 if number + 1 < len(cores) else 1)
        padded.append((begin * FRAME_SECONDS - min(padding, before), end * FRAME_SECONDS + min(padding, after)))
    return padded
