"""What is minimised: weights of terms and modalities, and what is added to the cross entropy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LossConfig:
    """Of a token with label y, and logits x over the K rows of the padded vocabulary, log Z = log sum_k exp x_k:

        (1 - smoothing) (log Z - x_y) + smoothing (log Z - mean_k x_k) + z (log Z)^2

    The loss is the mean of this over the global batch, weighted by layout and modality: sum of weight x loss over sum
    of weights. Reported losses by modality are the plain cross entropy, log Z - x_y, whatever is set here.
    """

    # Weight of each term by the name of its head; lm: the tokens. One that is not named has weight 1.
    terms: dict[str, float] = field(default_factory=dict)
    # Weight of a label's modality: text, a codebook's name, or audio for all codebooks not named; else 1. Only their
    # ratios matter. At 0 a modality is not learnt, and still reported.
    modalities: dict[str, float] = field(default_factory=dict)
    z: float = 0.0  # coefficient of (log Z)^2, which keeps logits near log-probabilities; PaLM (2204.02311) has 1e-4
    smoothing: float = 0.0  # label smoothing (1512.00567, section 7): share of the target spread over all K rows
    chunk: int = 1024  # tokens whose logits exist at a time; 0: all of a micro-batch, the most memory
