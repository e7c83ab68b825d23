"""What our readers find in corpora as distributed is what lhotse's recipes for the same corpora find."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import Recording as LhotseRecording
from lhotse import RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.kaldi import export_to_kaldi, load_kaldi_data_dir
from lhotse.recipes.aishell import prepare_aishell
from lhotse.recipes.commonvoice import _parse_utterance as parse_clip
from lhotse.recipes.fisher_english import create_supervision
from lhotse.recipes.gigaspeech import parse_utterance as parse_gigaspeech
from lhotse.recipes.librispeech import prepare_librispeech
from lhotse.recipes.wenet_speech import prepare_wenet_speech

from data_pipeline.sources.lines import read_table
from data_pipeline.sources.recording import Recording
from data_pipeline.sources.speech.long_form import read_audios
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.test_sources_layouts import (
    aishell,
    common_voice,
    fisher,
    gigaspeech,
    librispeech,
    read,
    source,
    wenetspeech,
)


def theirs(supervisions: list[SupervisionSegment], whole: bool = False) -> list[tuple]:
    """Recording, text, speaker and channel, and times where a recording has several segments."""
    found = []
    for said in supervisions:
        times = (0.0, None) if whole else (pytest.approx(said.start), pytest.approx(said.end))
        found.append((said.recording_id, said.text, said.speaker or "", said.channel, *times))
    return sorted(found, key=lambda row: row[:2])


def ours(recordings: list[Recording]) -> list[tuple]:
    """The same of ours; of files with one channel, that one is their mix."""
    return sorted(
        (recording.key, said.text, said.speaker, max(said.channel, 0), said.start, said.end)
        for recording in recordings
        for said in recording.segments
    )


def test_librispeech(tmp_path: Path) -> None:
    parts = prepare_librispeech(librispeech(tmp_path) / "LibriSpeech", dataset_parts="dev-clean")
    assert ours(read("librispeech", tmp_path)) == theirs(parts["dev-clean"]["supervisions"], whole=True)


def test_aishell(tmp_path: Path) -> None:
    aishell(tmp_path)
    (tmp_path / "data_aishell/wav/test/S1").mkdir(parents=True)
    write_sound(tmp_path / "data_aishell/wav/test/S1/BAC009S0724W0121.wav", speechlike(0.5))
    parts = prepare_aishell(tmp_path)
    for part in ("train", "dev", "test"):
        assert ours(read("aishell", tmp_path, part)) == theirs(parts[part]["supervisions"], whole=True)


@pytest.mark.parametrize("part", ["L", "M"])
def test_wenetspeech(tmp_path: Path, part: str) -> None:
    root = wenetspeech(tmp_path)
    parts = prepare_wenet_speech(root, dataset_parts=[part])
    assert ours(read("wenetspeech", root, part)) == theirs(parts[part]["supervisions"])


def test_gigaspeech(tmp_path: Path) -> None:
    gigaspeech(tmp_path)
    (audio,) = read_audios(tmp_path / "GigaSpeech.json")
    recording, supervisions = parse_gigaspeech(audio, tmp_path)
    spoken = [said for said in supervisions if said.text != "<MUSIC>"]
    (found,) = read("gigaspeech", tmp_path, lower_case=False)
    assert (found.key, found.duration, found.audio.file) == (
        recording.id,
        recording.duration,
        recording.sources[0].source,
    )
    for our, their in zip(found.segments, spoken, strict=True):
        assert (our.start, our.end) == (their.start, their.end)
        assert our.speaker == their.speaker.replace("N/A", "")
        tags = {",": " <COMMA>", ".": " <PERIOD>", "?": " <QUESTIONMARK>", "!": " <EXCLAMATIONPOINT>"}
        assert "".join(tags.get(character, character) for character in our.text) == their.text


def test_common_voice(tmp_path: Path) -> None:
    folder = common_voice(tmp_path)
    supervisions = []
    for _, row in read_table(folder / "validated.tsv"):
        recording, said = parse_clip(folder, "ga-IE", row)
        assert recording.sampling_rate == 32_000
        supervisions.append(said)
    assert ours(read("common_voice", folder)) == theirs(supervisions, whole=True)


def test_fisher(tmp_path: Path) -> None:
    fisher(tmp_path)
    (transcript,) = tmp_path.rglob("fe_03_00001.txt")
    supervisions = create_supervision(({"00001": {"A": "2602", "B": "1790"}}, transcript))
    assert ours(read("fisher", tmp_path, keep_marks=True)) == theirs(supervisions)


def test_kaldi_folders_that_lhotse_wrote(tmp_path: Path) -> None:
    recordings, supervisions = [], []
    for number in range(3):
        file = write_sound(tmp_path / f"wavs/r{number}.wav", speechlike(4.0, seed=number))
        recording = LhotseRecording.from_file(file)
        recordings.append(recording)
        for part in range(2):
            supervisions.append(
                SupervisionSegment(
                    id=f"r{number}-{part}",
                    recording_id=recording.id,
                    start=2.0 * part + 0.25,
                    duration=1.5,
                    text=f"text {number} {part} é",
                    speaker=f"s{part}",
                    language="fr",
                )
            )
    export_to_kaldi(
        RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions), tmp_path / "data"
    )
    opened = source("kaldi", tmp_path / "data")
    assert ours(list(opened.recordings())) == theirs(supervisions)
    assert {said.language for recording in opened.recordings() for said in recording.segments} == {"fr"}
    _, again, _ = load_kaldi_data_dir(tmp_path / "data", sampling_rate=16_000)
    assert ours(list(opened.recordings())) == theirs(again)
    for recording, their in zip(opened.recordings(), recordings, strict=True):
        assert (opened.sound(recording).samples == their.load_audio()).all()
