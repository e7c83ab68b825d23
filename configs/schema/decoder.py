"""The speech decoder: codes to mel by flow matching, mel to wave by a vocoder.

Where a source is named, values are Step-Audio's as its published code has them (cosyvoice/flow, hifigan/generator);
sizes that no source states are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MelConfig:
    """Logarithm of the magnitude of a short-time Fourier transform in Slaney's mel bands, as in HiFi-GAN (2010.05646).

    Frame j is centred on sample (j + 1/2) hop, with the sound mirrored at both ends. What models see is
    (log mel - mean) / deviation, two constants that bring speech near zero mean and unit variance.
    """

    rate: int = 22_050  # samples a second, also of the sound that comes out
    window: int = 1024  # samples of the Hann window, and of the transform
    hop: int = 256  # samples a frame; even, and the window a multiple of it
    bands: int = 80
    lowest: float = 0.0  # Hz
    highest: float = 8000.0  # Hz; sound in corpora is at 16 kHz and has nothing above
    floor: float = 1e-5  # magnitude below which the logarithm is cut off
    mean: float = -7.0
    deviation: float = 3.0


@dataclass
class FlowConfig:
    """Conditional flow matching from codes to mel: an encoder of codes, and a U-Net that estimates the flow.

    Attention is within `reach` frames (codes, in the encoder), so that streaming can have what the whole has.
    """

    embedding: int = 512  # width of codes and of the encoder
    encoder_layers: int = 6
    heads: int = 8  # of all attention
    head_dim: int = 64
    channels: list[int] = field(
        default_factory=lambda: [256, 256]
    )  # of the U-Net's levels; all but the last halve time
    blocks: int = 4  # transformer blocks a level
    middle: int = 12  # of the deepest level's stages, each with as many blocks
    reach: int | None = None  # frames before and after that attention sees, counted at its level; None: all
    sigma_min: float = 1e-6
    drop: float = 0.2  # share of samples that are learnt without any condition, for guidance
    prompt_share: float = 0.5  # of samples that are learnt with the beginning of their mel as a prompt
    longest_prompt: float = 0.3  # of a sample's frames
    euler_steps: int = 10  # in synthesis
    guidance: float = 0.7  # in synthesis: (1 + g) x conditional - g x unconditional flow; 0: one pass a step


@dataclass
class VocoderConfig:
    """ConvNeXt blocks over mel frames and an inverse Fourier transform at the end (Vocos, 2306.00814), trained against
    discriminators of periods (HiFi-GAN) and of spectrograms at several resolutions (UnivNet, 2106.07889)."""

    width: int = 512
    ffn: int = 1536
    layers: int = 8
    segment: int = 32  # frames of every sample that are learnt from, 0.37 s
    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])  # samples
    windows: list[int] = field(default_factory=lambda: [512, 1024, 2048])  # samples of the transforms judged
    discriminator_width: int = 32  # channels of their first layers
    mel_weight: float = 45.0  # L1 of log mels beside the adversarial loss (HiFi-GAN)
    features_weight: float = 2.0  # L1 of the discriminators' inner activations (HiFi-GAN)


@dataclass
class DecoderConfig:
    name: str = "tiny"
    mel: MelConfig = field(default_factory=MelConfig)
    speaker: str = ""  # encoder of voices, as corpus.quality.speaker; "": decoding knows one voice, that of the corpus
    speaker_width: int = 256  # of its vectors (resemblyzer: 256)
    seconds: float = 3.0  # longest crop that a sample is
    flow: FlowConfig = field(default_factory=FlowConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
