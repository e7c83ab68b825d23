"""The encoder of streaming Paraformer: hidden states 16.67 times a second, 240 ms at a time.

Sound is taken in chunks of 3840 samples. A chunk makes four features: Kaldi filterbanks, seven neighbouring frames
stacked every six (low frame rate), shifted and scaled. The encoder sees them behind the five before; its attention
sees besides, of each of the four chunks before, the keys of the four frames that then were oldest. What a chunk
needs of the past is thus the same at every layer, so that all chunks of many waves are computed at once
(`encode`), or one after the other with a cache (`Cache`, `step`), to the same states.

Parameters have FunASR's names, so that its state dicts load: SANM blocks, whose attention has a memory (FSMN), a
convolution over time of each value dimension.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, relu, scaled_dot_product_attention

from data_pipeline.codecs.weights import read_state
from runtime.exits import BadInput

STRIDE = 3840  # samples a chunk
NEW = 4  # features that a chunk adds
OVERLAP = 5  # features that it sees again
LOOK_BACK = 4  # chunks whose keys and values it sees besides
_STACK, _STEP = 7, 6  # frames stacked, every so many
_SHIFT, _LENGTH = 160, 400  # samples between and in filterbank frames
KEPT = STRIDE - (1 + (STRIDE - _LENGTH) // _SHIFT) * _SHIFT  # samples of a chunk that the next one's frames begin with
_BANDS = 80
_HEADS = 4
_NORM_EPS = 1e-12


# --- features ---------------------------------------------------------------------------------------------------


def filterbank(wave: np.ndarray) -> np.ndarray:
    """float32 [frames, 80] of float32 [samples] at 16 kHz: Kaldi's log mel energies, Hamming window, no dither, on the
    scale of 16-bit integers; frames = (samples - 400) // 160 + 1."""
    from kaldi_native_fbank import FbankOptions, OnlineFbank

    options = FbankOptions()
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.mel_opts.num_bins = _BANDS
    bank = OnlineFbank(options)
    bank.accept_waveform(16_000, wave * np.float32(1 << 15))
    frames = [bank.get_frame(index) for index in range(bank.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, _BANDS), np.float32)


def features_in(samples: int) -> int:
    """Features of a whole wave: four a whole chunk, and of the rest those that begin before its last three frames, if
    seven frames are left at all."""
    chunks, rest = divmod(samples, STRIDE)
    rows = _frames(rest + KEPT) + 1 if chunks else _frames(rest) + _STACK // 2
    return NEW * chunks + (-(-(rows - _STACK // 2) // _STEP) if rest and rows >= _STACK else 0)


def _frames(samples: int) -> int:
    return max((samples - _LENGTH) // _SHIFT + 1, 0)


def stacked(rows: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, 560]: the `count` first stacks of filterbank rows, the last row repeated where they end."""
    at = np.minimum(_STEP * np.arange(count)[:, None] + np.arange(_STACK), len(rows) - 1)
    return rows[at].reshape(count, _STACK * rows.shape[1])


def with_head(frames: np.ndarray) -> np.ndarray:
    """A wave's filterbank frames behind three copies of the first, where its stacks begin."""
    return np.concatenate([np.repeat(frames[:1], _STACK // 2, axis=0), frames])


# --- the network ------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self, entering: int, width: int, kernel: int) -> None:
        super().__init__()
        self.linear_q_k_v = nn.Linear(entering, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self._sides = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)

    def memory(self, values: torch.Tensor) -> torch.Tensor:
        """[chunks, frames, width] of values, zeros where there is no frame."""
        return self.fsmn_block(pad(values.transpose(1, 2), self._sides)).transpose(1, 2) + values

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[chunks, queries, width]; `mask`: bool [chunks, keys], keys that are there."""
        split = [part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
        seen = None if mask is None else mask[:, None, None, :].expand(-1, 1, q.shape[1], -1)
        attended = scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=seen)
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)


class _Block(nn.Module):
    def __init__(self, entering: int, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(entering, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.self_attn = _Attention(entering, width, kernel)
        self.feed_forward = _FeedForward(width, inner)

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values."""
        q, k, v = self.self_attn.linear_q_k_v(self.norm1(x)).chunk(3, dim=-1)
        return q, k, v

    def finished(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The block's output; the first block changes the width, so its input is not added."""
        x = x + attended if x.shape == attended.shape else attended
        return x + self.feed_forward.w_2(relu(self.feed_forward.w_1(self.norm2(x))))


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
        self.encoders0 = nn.ModuleList([_Block(entering, width, inner, kernel)])
        self.encoders = nn.ModuleList([_Block(width, width, inner, kernel) for _ in range(blocks - 1)])
        self.after_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.register_buffer("shift", torch.zeros(entering), persistent=False)
        self.register_buffer("scale", torch.ones(entering), persistent=False)
        self.shift: torch.Tensor
        self.scale: torch.Tensor

    @property
    def _blocks(self) -> list[_Block]:
        return [block for part in (self.encoders0, self.encoders) for block in part if isinstance(block, _Block)]

    def entered(self, features: np.ndarray, start: int) -> torch.Tensor:
        """[features, 560] as the first block takes them: normalised, scaled, with their positions from `start` on."""
        x = (torch.from_numpy(features).to(self.shift.device) + self.shift) * self.scale * self.width**0.5
        half = x.shape[1] // 2
        step = torch.log(torch.tensor(10000.0)) / (half - 1)
        speeds = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        angles = torch.arange(start + 1, start + 1 + len(x), dtype=torch.float32)[:, None] * speeds
        return x + torch.cat([angles.sin(), angles.cos()], dim=1).to(x.device)

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
    stored = read_state(weights, part)
    if any(name.startswith("encoder.encoders0.") for name in stored):
        stored = {name.removeprefix("encoder."): value for name, value in stored.items() if name.startswith("encoder.")}
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
    shift, scale = _statistics(statistics, part)
    if not len(shift) == len(scale) == entering == _STACK * _BANDS:
        raise BadInput(
            f"codec.weights.{part}: the encoder takes {entering} dimensions, {statistics} has {len(shift)} and "
            f"{len(scale)}; there have to be {_STACK * _BANDS}"
        )
    encoder.shift, encoder.scale = torch.from_numpy(shift), torch.from_numpy(scale)
    return encoder.eval()


def _statistics(file: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of a Kaldi nnet `am.mvn`: the numbers in brackets behind <AddShift> and <Rescale>."""
    try:
        text = file.read_text(encoding="utf-8")
        found = [re.search(rf"<{tag}>[^\[]*\[([^\]]*)\]", text) for tag in ("AddShift", "Rescale")]
        shift, scale = (np.array(match[1].split(), np.float32) for match in found if match)
    except (OSError, ValueError) as error:
        raise BadInput(f"codec.weights.{part}: {file} is no am.mvn with <AddShift> and <Rescale>") from error
    return shift, scale
