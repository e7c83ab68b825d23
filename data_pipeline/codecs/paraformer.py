"""The encoder of streaming Paraformer: hidden states 16.67 times a second, 240 ms at a time.

Sound is taken in chunks of 3840 samples. A chunk makes four features: Kaldi filterbanks, seven neighbouring frames
stacked every six (low frame rate), shifted and scaled. The encoder sees them behind the five before; its attention
sees besides, of each of the four chunks before, the keys of the four frames that then were oldest. What a chunk
needs of the past is thus the same at every layer, so that all chunks of many waves are computed at once
(`encode`), or one after the other with a cache (`Cache`, `step`), to the same states.

Parameters have FunASR's names, so that its state dicts load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from configs.audio_input import STACKED
from configs.schema import EncoderKind
from data_pipeline.codecs.low_frame_rate import BANDS, SHIFT, STEP, frames_in, read_statistics
from data_pipeline.codecs.sanm import NORM_EPS, Block, encoder_state, positions
from runtime.exits import BadInput

STRIDE = 3840  # samples a chunk
NEW = 4  # features that a chunk adds
OVERLAP = 5  # features that it sees again
LOOK_BACK = 4  # chunks whose keys and values it sees besides
KEPT = STRIDE - frames_in(STRIDE) * SHIFT  # samples of a chunk that the next one's frames begin with
_HEADS = 4
_EPS = NORM_EPS[EncoderKind.paraformer]


# --- features ---------------------------------------------------------------------------------------------------


def features_in(samples: int) -> int:
    """Features of a whole wave: four a whole chunk, and of the rest those that begin before its last three frames, if
    seven frames are left at all."""
    chunks, rest = divmod(samples, STRIDE)
    rows = frames_in(rest + KEPT) + 1 if chunks else frames_in(rest) + STACKED // 2
    return NEW * chunks + (-(-(rows - STACKED // 2) // STEP) if rest and rows >= STACKED else 0)


# --- the network ------------------------------------------------------------------------------------------------


@dataclass
class Cache:
    """What a stream keeps of the past. overlap: the features seen again, [1, 5, 560]; keys, values: of each block those
    looked back to, [1, up to 16, width]; done: features so far."""

    overlap: torch.Tensor
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    done: int = 0


class ParaformerEncoder(nn.Module):
    """`shift` and `scale`, [560], normalise the features. Widths and depth are those of the state dict."""

    def __init__(self, entering: int, width: int, inner: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.width = width
        self.encoders0 = nn.ModuleList([Block(entering, width, _HEADS, inner, kernel, _EPS)])
        self.encoders = nn.ModuleList([Block(width, width, _HEADS, inner, kernel, _EPS) for _ in range(blocks - 1)])
        self.after_norm = nn.LayerNorm(width, eps=_EPS)
        self.register_buffer("shift", torch.zeros(entering), persistent=False)
        self.register_buffer("scale", torch.ones(entering), persistent=False)
        self.shift: torch.Tensor
        self.scale: torch.Tensor

    @property
    def _blocks(self) -> list[Block]:
        return [block for part in (self.encoders0, self.encoders) for block in part if isinstance(block, Block)]

    def entered(self, features: np.ndarray, start: int) -> torch.Tensor:
        """[features, 560] as the first block takes them: normalised, scaled, with their positions from `start` on."""
        x = (torch.from_numpy(features).to(self.shift.device) + self.shift) * self.scale * self.width**0.5
        return x + positions(len(x), x, start)

    def encode(self, features: Sequence[np.ndarray]) -> torch.Tensor:
        """[all features, width]: states of waves end to end, of their float32 [features, 560], all chunks at once."""
        chunks: list[torch.Tensor] = []
        real: list[int] = []  # new features of each
        before: list[list[int]] = []  # chunks each looks back to, -1 where there is none
        for of in features:
            first, count = len(chunks), -(-len(of) // NEW)
            room = pad(self.entered(of, 0), (0, 0, OVERLAP, count * NEW - len(of)))
            for number in range(count):
                chunks.append(room[number * NEW : number * NEW + OVERLAP + NEW])
                real.append(min(len(of) - number * NEW, NEW))
                before.append([first + k if k >= 0 else -1 for k in range(number - LOOK_BACK, number)])
        if not chunks:
            return torch.zeros((0, self.width), device=self.shift.device)
        x, device = torch.stack(chunks), self.shift.device
        new, past = torch.tensor(real, device=device), torch.tensor(before, device=device)
        there = torch.arange(OVERLAP + NEW, device=device) < OVERLAP + new[:, None]
        mask = torch.cat([(past >= 0).repeat_interleave(NEW, 1), there], dim=1)
        for block in self._blocks:
            q, k, v = block.projected(x)
            v = v * there[..., None]
            keys, values = (torch.cat([part[:, :NEW][past].flatten(1, 2), part], dim=1) for part in (k, v))
            x = block.finished(x, block.self_attn.attend(q, keys, values, mask) + block.self_attn.memory(v))
        kept = there & (torch.arange(OVERLAP + NEW, device=device) >= OVERLAP)
        return self.after_norm(x[kept])

    def open(self) -> Cache:
        return Cache(overlap=torch.zeros((1, OVERLAP, len(self.shift)), device=self.shift.device))

    def step(self, features: np.ndarray, cache: Cache) -> torch.Tensor:
        """[features, width]: states of the next chunk, of its float32 [up to 4, 560]; `cache` moves on."""
        x = torch.cat([cache.overlap, self.entered(features, cache.done)[None]], dim=1)
        cache.overlap, cache.done = x[:, -OVERLAP:], cache.done + len(features)
        for index, block in enumerate(self._blocks):
            q, k, v = block.projected(x)
            memory = block.self_attn.memory(v)
            keys, values = k[:, :-OVERLAP], v[:, :-OVERLAP]
            if index < len(cache.keys):
                k, v = torch.cat([cache.keys[index], k], dim=1), torch.cat([cache.values[index], v], dim=1)
                keys = torch.cat([cache.keys[index], keys], dim=1)[:, -LOOK_BACK * NEW :]
                values = torch.cat([cache.values[index], values], dim=1)[:, -LOOK_BACK * NEW :]
                cache.keys[index], cache.values[index] = keys, values
            else:
                cache.keys.append(keys)
                cache.values.append(values)
            x = block.finished(x, block.self_attn.attend(q, k, v, None) + memory)
        return self.after_norm(x[0, -len(features) :])


# --- files ------------------------------------------------------------------------------------------------------


def load_paraformer(weights: Path, statistics: Path, part: str) -> ParaformerEncoder:
    """The encoder, float32, of a Paraformer's state dict and its `am.mvn`. Raises BadInput where they are not those."""
    stored = encoder_state(weights, part)
    try:
        width, entering = stored["encoders0.0.self_attn.linear_q_k_v.weight"].shape
        blocks = 1 + len({name.split(".")[1] for name in stored if name.startswith("encoders.")})
        inner = len(stored["encoders0.0.feed_forward.w_1.bias"])
        kernel = stored["encoders0.0.self_attn.fsmn_block.weight"].shape[2]
        encoder = ParaformerEncoder(entering, width // 3, inner, blocks, kernel)
        encoder.load_state_dict({name: value.float() for name, value in stored.items()}, strict=True)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        line = " ".join(str(error).split())[:160]
        raise BadInput(f"codec.weights.{part}: {weights} is not a Paraformer with a SANM encoder: {line}") from error
    shift, scale = read_statistics(statistics, STACKED * BANDS, part)
    if entering != STACKED * BANDS:
        raise BadInput(f"codec.weights.{part}: the encoder takes {entering} dimensions, not {STACKED * BANDS}")
    encoder.shift, encoder.scale = torch.from_numpy(shift), torch.from_numpy(scale)
    return encoder.eval()
