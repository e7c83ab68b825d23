"""A sound file through codes and back: how much of speech a codec keeps and a decoder gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.schema import Config
from data_pipeline.audio import SAMPLE_RATE, resample
from data_pipeline.codecs.codec import Codec
from data_pipeline.decode import decode
from data_pipeline.layouts.groups import group_length, lay_groups
from data_pipeline.sources.recording import MIXED
from runtime.exits import BadInput
from train.decoder.synthesis import Decoder
from train.generation.transcription import heard_in


def said_again(decoder: Decoder, codec: Codec, config: Config, file: Path, *, stream: bool) -> np.ndarray:
    """The file's speech at the decoder's rate, float32 [samples], in its own voice where the decoder knows voices;
    `stream`: a group of codes at a time. Stretches of a long file come one after the other, without its pauses.

    Raises BadInput for a file that is no sound, or too short for a group of codes.
    """
    heard = [lay_groups(utterance, decoder.parts.vocabulary) for utterance in heard_in(file, codec, config)]
    speaker = _speaker(decoder, file)
    waves: list[np.ndarray] = []
    for ids in filter(len, heard):
        if stream:
            chunks = ids.reshape(-1, group_length(decoder.parts.vocabulary))
            waves += decoder.stream(chunks, speaker=speaker)
        else:
            waves.append(decoder.decode(ids.reshape(-1), speaker=speaker)[0])
    if not waves:
        raise BadInput(f"{file}: shorter than one group of codes")
    return np.concatenate(waves)


def _speaker(decoder: Decoder, file: Path) -> np.ndarray | None:
    encoder = decoder.parts.config.speaker
    if not encoder:
        return None
    from data_pipeline.quality.speaker import open_encoder

    sound = decode(file)
    return open_encoder(encoder).embed(resample(sound.channel(MIXED), sound.rate, SAMPLE_RATE))
