"""Which layouts the model takes, and how their tokens are counted."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.layouts import find_layout
from data_pipeline.packing import fill_packs
from runtime.exits import BadInput
from tests.data_pipeline.layout_material import RESIDUAL, lay, speak
from train.models.speech_lm import check_layouts
from train.progress import tally


def test_layouts_of_more_than_one_column_are_refused_before_training():
    """In one line that names the source, whichever of columns or targets it is."""
    fine = {"talk.asr": find_layout("asr", {}), "chats": find_layout("units", {})}
    check_layouts(fine, None)
    for name, options in (("csm", {}), ("text", {"frames": True}), ("channels", {})):
        with pytest.raises(BadInput, match=f"source talk.other: layout {name} makes .* reads one column of tokens"):
            check_layouts(fine | {"talk.other": find_layout(name, options)}, None)


def test_tokens_of_all_columns_are_counted_by_modality():
    (sample,) = lay(
        "csm", [speak(RESIDUAL, 0.4, np.random.default_rng(0), "Hi")], RESIDUAL
    )  # 5 frames and one that closes
    counted = tally(fill_packs([sample], 32, 0), RESIDUAL, {})
    text = int((sample.tokens[:, -1] >= 0).sum())
    assert (counted.tokens, counted.padding) == (len(sample), 32 - len(sample)) == (text + 6, 26 - text)
    assert counted.predicted == (sample.loss_weight != 0).sum() > 0
    assert counted.modalities == (text, 6 * 4) and counted.audio_seconds == pytest.approx(0.4)
