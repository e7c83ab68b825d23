"""Runs of frames: laid end to end, as batches have them, and side by side with zeros behind each."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Runs(NamedTuple):
    """Frames of several runs, run after run. frames: [F, width]; ends: integers [R + 1], where each run begins in
    them, and F; longest: frames of the longest run."""

    frames: torch.Tensor
    ends: torch.Tensor
    longest: int

    @property
    def lengths(self) -> torch.Tensor:
        """Frames of each run, [R]."""
        return self.ends.diff()

    def side_by_side(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, longest, width], zeros behind each run, and bool [R, longest], which of them are frames."""
        within = torch.arange(self.longest, device=self.frames.device)
        real = within < self.lengths[:, None]
        places = (self.ends[:-1, None] + within).clamp(max=len(self.frames) - 1)
        return self.frames[places].masked_fill(~real[..., None], 0), real


def end_to_end(rows: torch.Tensor, ends: torch.Tensor, total: int) -> torch.Tensor:
    """The inverse: of rows [R, longest, width] what `ends` says each run has, [total, width]. `total` may be more than
    that, which saves asking a GPU for the number: what is behind the last run is of no meaning."""
    number = torch.arange(total, device=rows.device)
    run = torch.searchsorted(ends[1:].contiguous(), number, right=True).clamp(max=len(rows) - 1)
    return rows[run, (number - ends[run]).clamp(max=rows.shape[1] - 1)]


def attended(real: torch.Tensor) -> torch.Tensor:
    """bool [R, 1, longest, longest]: each frame of a run may see the frames of it and nothing behind them."""
    return real[:, None, None, :].expand(-1, 1, real.shape[1], -1)


def ends_of(counts: torch.Tensor) -> torch.Tensor:
    """`Runs.ends` of runs with so many frames: [R] -> [R + 1]."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def windows(runs: Runs, longest: int) -> Runs:
    """Runs cut into ones of `longest` frames, the last of each shorter."""
    if runs.longest <= longest:
        return runs
    edges = [0]
    for end in runs.ends.tolist()[1:]:
        edges += [*range(edges[-1] + longest, end, longest), end]
    return Runs(runs.frames, torch.tensor(edges, device=runs.ends.device), longest)
