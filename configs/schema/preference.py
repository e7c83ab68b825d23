"""Learning from pairs of answers, one of which was preferred."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PreferenceConfig:
    """Of an answer y to x, log p(y) is the sum of the log-probabilities of its tokens, weighted by layout and by
    `loss.modalities` (audio at 0: text alone counts and is reported, as in Step-Audio-AQAA), log ref(y) the same under
    the weights that the stage begins with, and the margin of a pair

        m = beta ((log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected)))

    Objective dpo minimises the mean over the pairs of the global batch of (Rafailov et al., 2305.18290, equation 7)

        -(1 - smoothing) log sigmoid(m) - smoothing log sigmoid(-m)

    and nll times the mean over the tokens of chosen answers of their cross entropy. Objective reward, whose m is the
    difference of two rewards, minimises -log sigmoid(m) and has none of these options.
    """

    beta: float = 0.1  # our choice: Step-Audio-AQAA states none
    smoothing: float = 0.0  # share of pairs whose answers are taken to be the wrong way round, below 0.5
    nll: float = 0.0  # weight of the chosen answers' cross entropy (2404.19733, equation 1)
