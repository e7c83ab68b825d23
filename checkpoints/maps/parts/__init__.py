"""Parts of speech models beside the text LLM, as maps of published names into namespaces of native ones.

Native names begin with `encoder.`, `adapter.`, `depth.` or `heads.`. Of the last two there are maps alone: no module
here computes or trains them yet.
"""

from __future__ import annotations

from checkpoints.maps.parts.adapter import ADAPTER
from checkpoints.maps.parts.codec_heads import CODEC_HEADS
from checkpoints.maps.parts.csm import CSM
from checkpoints.maps.parts.part import Part
from checkpoints.maps.parts.sanm_encoder import SANM_ENCODER
from checkpoints.maps.parts.whisper_encoder import WHISPER_ENCODER

PARTS: tuple[Part, ...] = (WHISPER_ENCODER, SANM_ENCODER, ADAPTER, CODEC_HEADS, CSM)
"""All that are known."""
