"""SenseVoice-small's and Paraformer's encoder inside of the model, where it can be trained. Parameters have FunASR's
names."""

from __future__ import annotations

from configs.schema import EncoderConfig
from data_pipeline.codecs.sanm import Sanm
from data_pipeline.codecs.sanm_encoder import shape_of
from train.models.inputs.layered import Layered
from train.models.inputs.runs import Runs, end_to_end, windows


class SanmEncoder(Layered, Sanm):
    """Features at a low frame rate to vectors, one of each. Without dropout, of which FunASR's training has some."""

    stacks = ("encoders", "tp_encoders")

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(shape_of(config))
        self.window = config.positions

    def forward(self, features: Runs) -> Runs:
        """Runs of features [F, 7 mels], normalised -> of as many vectors: [F, width]."""
        cut = features if self.window is None else windows(features, self.window)
        vectors = end_to_end(self.encode(*cut.side_by_side()), cut.ends, len(features.frames))
        return Runs(vectors, features.ends, features.longest)
