"""Which batches the model takes, and how they are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.batch import FeatureSlots, Sample, Target, collate
from data_pipeline.packing import fill_packs
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import RESIDUAL, lay, speak
from train.models.speech_lm import run
from train.progress import tally


def plain(length: int = 8) -> Sample:
    tokens = np.arange(length)
    weight, modality = np.ones(length, np.float32), np.zeros(length, np.uint8)
    return Sample(tokens, weight, modality, np.arange(length, dtype=np.int32), key="s")


@pytest.mark.parametrize("kind", ["columns", "slots", "targets"])
def test_a_batch_of_more_than_one_column_is_refused_in_one_line(kind):
    sample = plain()
    if kind == "columns":
        (sample,) = lay("text", [speak(RESIDUAL, 0.4, np.random.default_rng(0), "Hi")], RESIDUAL, frames=True)
    elif kind == "slots":
        sample = replace(sample, slots=(FeatureSlots("whisper", np.zeros((4, 2), np.float16), 2, 1),))
    else:
        sample = replace(sample, targets={"edge": Target(np.arange(8), np.ones(8, np.float32))})
    batch = collate(fill_packs([sample], 16, 0))
    with pytest.raises(BadInput, match="this model reads one column of tokens; choose another layout"):
        run(torch.nn.Identity(), batch, batch.labels)


def test_tokens_of_all_columns_are_counted_by_modality():
    (sample,) = lay(
        "csm", [speak(RESIDUAL, 0.4, np.random.default_rng(0), "Hi")], RESIDUAL
    )  # 5 frames and one that closes
    counted = tally(fill_packs([sample], 32, 0), RESIDUAL)
    text = int((sample.tokens[:, -1] >= 0).sum())
    assert (counted.tokens, counted.padding) == (len(sample), 32 - len(sample)) == (text + 6, 26 - text)
    assert counted.modalities == (text, 6 * 4) and counted.audio_seconds == pytest.approx(0.4)
