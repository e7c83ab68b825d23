"""Codecs: waveform to codes. `Codec` is the interface, `open_codec` opens one; each kind is a module of its name."""

from data_pipeline.codecs.codec import Codec, Stream
from data_pipeline.codecs.registry import codebooks_of, codec_identity, learns, open_codec

__all__ = ["Codec", "Stream", "codebooks_of", "codec_identity", "learns", "open_codec"]
