"""Learning from a reward model by proximal policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PPOConfig:
    """Objective ppo (Schulman et al., 1707.06347; for language models Ziegler et al., 1909.08593, and Ouyang et al.,
    2203.02155). In each round the policy answers `prompts` questions of its mixture, pairs of which the question alone
    is taken; then every answer is learnt from `epochs` times, `train.global_batch` answers a step. Validation has it
    answer `train.validation_packs` questions that are held out. The reference is the model that the stage begins with.
    Of the tokens a_1..a_n of an answer

        r_t = -kl (log p(a_t) - log ref(a_t)), and at t = n the reward model's number too
        A_t = sum_k (discount trace)^k (r_{t+k} + discount V_{t+k+1} - V_{t+k})      (1506.02438, equation 16)
        R_t = A_t + V_t

    with p and V of the policy and the critic that the round begins with. After that A is brought to mean 0 and variance
    1 over the round. Minimised is, as a mean over the tokens of a step, by the policy

        -min(q A, clip(q, 1 - clip, 1 + clip) A), where q is a token's probability over that at the round's beginning

    and by the critic, a model of its own that begins as the reward model, half of

        max((V' - R)^2, (V + clip(V' - V, -clip_value, clip_value) - R)^2)

    Defaults are Step-Audio's (2502.11946, section 5.2.6) where it states them: critic_warmup, clip and kl. Its learning
    rates are `optimizer`'s. The others are our choice.
    """

    # The reward model: stage:<name> for an earlier stage, or a run's folder or native checkpoint.
    reward: str | None = None
    prompts: int = 64  # a round; a multiple of train.global_batch
    epochs: int = 1  # passes over a round's answers
    # Tokens of an answer, the one that ends it counted. Questions that leave no room for so many are left out.
    longest: int = 256
    unended: float = 1.0  # taken off the reward of an answer that was cut after so many
    critic_warmup: int = 80  # steps, the stage's first, in which the critic learns alone: the policy's rate is 0
    critic_lr: float | None = None  # highest; it falls as the policy's does, after the warm-up; None: optimizer.lr
    clip: float = 0.2
    clip_value: float | None = 0.2  # None: values are not clipped
    kl: float = 0.05
    discount: float = 1.0
    trace: float = 0.95  # lambda of generalised advantage estimation
    batch: int = 16  # questions that the generator of one process has at once
