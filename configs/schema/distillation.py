"""How a student follows a teacher whose words were kept (`generation.makes: teacher`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DistillationConfig:
    """Of a token with the loss l (configs/schema/loss.py) and a teacher's p over the tokens that can stand there, q the
    student's, both at this temperature T:

        cross_entropy x l + (1 - cross_entropy) x T^2 x KL(p || q)                    (Hinton et al., 1503.02531)

    Among the tokens of a codebook nothing is said of the end of speech: that is learnt from l, which has to count.
    """

    teacher: str | None = None  # stage:<name> of the stage that asked it, or what it made; None: none is followed
    cross_entropy: float = 0.5  # above 0, at most 1, where the divergence is told and not learnt
    temperature: float = 1.0  # of both; what is kept of a teacher is at one temperature
