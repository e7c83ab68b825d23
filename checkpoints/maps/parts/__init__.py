"""Parts of speech models beside the text LLM, as maps of published names into namespaces of native ones.

Native names begin with `audio_encoder.`, `adapter.`, `depth.` or `heads.`. So far these are maps alone: no module here
computes or trains the parts yet.
"""

from __future__ import annotations

from checkpoints.maps.parts.adapter import ADAPTER
from checkpoints.maps.parts.codec_heads import CODEC_HEADS
from checkpoints.maps.parts.csm import CSM
from checkpoints.maps.parts.part import Part
from checkpoints.maps.parts.whisper_encoder import WHISPER_ENCODER

PARTS: tuple[Part, ...] = (WHISPER_ENCODER, ADAPTER, CODEC_HEADS, CSM)
"""All that are known."""
