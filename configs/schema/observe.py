"""What a run measures about itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ProfileConfig:
    """A window of steps recorded by torch's profiler, into profiles/ of the run folder.

    One opens at `start`, and one whenever a rank or the launcher gets SIGUSR2, or a file named `profile` appears in the
    run folder. The step before a window is recorded too, as a warm-up, and thrown away.
    """

    start: int | None = None  # first step of a planned window; None: none is planned
    steps: int = 3  # steps in a window
    ranks: list[int] | None = None  # ranks that record; None: all
    memory: bool = False  # also keep a history of a GPU's allocations, for pytorch.org/memory_viz


@dataclass
class ObserveConfig:
    """Measurements beyond the loss. None of them changes what is learned."""

    ranks_every: int = 10  # steps between comparisons of all ranks: time split and memory; 0: rank 0's time alone
    norms_every: int = 10  # steps between norms of gradients, parameters and updates by group; 0: never
    norms_by_layer: bool = False  # norms of every layer of the trunk as well
    peak_teraflops: float | None = None  # dense peak of one device, for MFU; None: by its name, of train.precision
    profile: ProfileConfig = field(default_factory=ProfileConfig)
