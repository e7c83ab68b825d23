"""What real corpora are full of: nothing is lost silently, nothing is read from where it should not be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import SpeechSourceConfig
from data_pipeline.sources.keys import LONGEST_KEY, safe_key
from data_pipeline.sources.recording import Recording, SpeechSource, UnreadableAudio
from data_pipeline.sources.speech import open_speech_source
from runtime.exits import BadInput
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.test_sources_layouts import lines, read, source, wenetspeech


def kinds_of(opened: SpeechSource) -> dict[str, str]:
    """By key: sound, or the kind of what is wrong."""
    return {recording.key: kind_of(opened, recording) for recording in opened.recordings()}


def kind_of(opened: SpeechSource, recording: Recording) -> str:
    try:
        sound = opened.sound(recording)
    except UnreadableAudio as error:
        return error.kind
    assert sound.samples.dtype == np.float32 and np.isfinite(sound.samples).all() and np.abs(sound.samples).max() <= 1
    return "sound"


def test_a_folder_of_faults_is_read_and_each_is_named(tmp_path: Path) -> None:
    wave = speechlike(2.0)
    spoilt = wave.copy()
    spoilt[1000] = np.nan
    good = write_sound(tmp_path / "good.wav", wave)
    write_sound(tmp_path / "nan.wav", spoilt, kind="float.wav")
    write_sound(tmp_path / "zero.wav", wave[:0])
    (tmp_path / "void.mp3").touch()
    (tmp_path / "short.flac").write_bytes(write_sound(tmp_path / "x.flac", wave).read_bytes()[:9000])
    (tmp_path / "noise.ogg").write_bytes(os.urandom(5000))
    (tmp_path / "text.m4a").write_text("not audio at all, but somebody's notes")
    (tmp_path / "page.mp3").write_text("<html>404 Not Found</html>")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    header = bytearray(good.read_bytes())
    header[24:28] = (3).to_bytes(4, "little")
    (tmp_path / "rate.wav").write_bytes(header)
    (tmp_path / "x.flac").unlink()
    assert kinds_of(source("audio_folder", tmp_path)) == {
        "good": "sound",
        "nan": "not_finite",
        "zero": "empty",
        "void": "empty",
        "short": "decode",
        "noise": "decode",
        "text": "decode",
        "page": "decode",
        "gone": "missing",
        "rate": "rate",
    }


def test_a_header_that_lies_about_the_rate_is_found_where_the_source_knows_the_duration(tmp_path: Path) -> None:
    root = wenetspeech(tmp_path)
    file = root / "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus"
    write_sound(file, speechlike(6.0), kind="wav")
    opened = source("wenetspeech", root)
    (recording,) = opened.recordings()
    assert kind_of(opened, recording) == "sound"
    for rate, seconds in ((8_000, 12.0), (32_000, 3.0)):
        soundfile.write(file, speechlike(6.0), rate, format="WAV")
        with pytest.raises(UnreadableAudio, match=f"lasts {seconds:.2f} s where its source says 6.00 s") as caught:
            opened.sound(recording)
        assert caught.value.kind == "duration"
        with pytest.raises(UnreadableAudio, match="duration"):
            opened.sound(recording, 1.0, 2.0)  # a part of it would be of another time
        with pytest.raises(UnreadableAudio):
            list(opened.blocks(recording))


def test_manifests_that_say_how_long_a_file_is_are_held_to_it(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.wav", speechlike(2.0))
    rows = [json.dumps({"audio_filepath": "a.wav", "duration": seconds, "text": "x"}) for seconds in (2.1, 4.0)]
    for row, kind in zip(rows, ("sound", "duration"), strict=True):
        assert set(kinds_of(source("jsonl", lines(tmp_path / "m.jsonl", row))).values()) == {kind}
    lines(tmp_path / "data/wav.scp", f"r1 {file}", f"r2 {file}")
    lines(tmp_path / "data/reco2dur", "r1 2.0", "r2 1.0")
    assert kinds_of(source("kaldi", tmp_path / "data")) == {"r1": "sound", "r2": "duration"}


def test_files_of_different_rates_keep_theirs(tmp_path: Path) -> None:
    for rate in (8_000, 16_000, 44_100):
        write_sound(tmp_path / f"{rate}.wav", speechlike(1.0, rate), rate)
    opened = source("audio_folder", tmp_path)
    sounds = {recording.key: opened.sound(recording) for recording in opened.recordings()}
    assert {key: (sound.rate, sound.duration) for key, sound in sounds.items()} == {
        "8000": (8_000, 1.0),
        "16000": (16_000, 1.0),
        "44100": (44_100, 1.0),
    }


def test_empty_text_is_speech_without_transcript(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", speechlike(1.0))
    rows = [{"audio_filepath": "a.wav", "text": text} for text in ("", None, "  ")]
    found = read("jsonl", lines(tmp_path / "m.jsonl", *(json.dumps({**row, "offset": 0.0}) for row in rows)))
    assert [segment.text for segment in found[0].segments] == ["", "", ""]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"audio_filepath": "a.wav", "offset": -1}', "line 2: offset is no number of at least 0"),
        ('{"audio_filepath": "a.wav", "offset": NaN}', "line 2: offset is no number"),
        ('{"audio_filepath": "a.wav", "offset": "soon"}', "line 2: offset is no number"),
        ('{"text": "no file"}', "line 2 has no audio_filepath; its keys are text"),
        ('["a.wav"]', "line 2 is no JSON object"),
        ('{"audio_filepath": ', "line 2 is no JSON"),
    ],
)
def test_lines_that_make_no_sense_are_named(tmp_path: Path, row: str, said: str) -> None:
    manifest = lines(tmp_path / "m.jsonl", '{"audio_filepath": "b.wav"}', row)
    with pytest.raises(BadInput, match=said):
        read("jsonl", manifest)
    (tmp_path / "m.jsonl").write_bytes(b'{"audio_filepath": "\xff\xfe.wav"}\n')
    with pytest.raises(BadInput, match="no UTF-8"):
        read("jsonl", manifest)


def test_recordings_with_one_name_are_refused(tmp_path: Path) -> None:
    row = json.dumps({"audio_filepath": "a.wav", "id": "one"})
    with pytest.raises(BadInput, match="two recordings are called one"):
        read("jsonl", lines(tmp_path / "m.jsonl", row, row.replace("a.wav", "b.wav")))


NAMES = (
    "ångström 日本語 🎙️.wav",
    "two  spaces\tand a tab.wav",
    "quote'\"$(touch ran)`.wav",
    "-rf.wav",
    "..up.wav",
    "line\nbreak.wav",
    "x" * 240 + ".wav",
    "a.b.c.wav",
    "%2e%2e%2fup.wav",
)


def test_names_of_any_kind_have_safe_keys(tmp_path: Path) -> None:
    for name in NAMES:
        write_sound(tmp_path / name, speechlike(0.2), kind="wav")
    (tmp_path / os.fsdecode(b"latin-\xe9.wav")).write_bytes((tmp_path / "-rf.wav").read_bytes())
    opened = source("audio_folder", tmp_path)
    found = kinds_of(opened)
    assert len(found) == len(NAMES) + 1 and set(found.values()) == {"sound"}
    assert all(re.fullmatch(r"[A-Za-z0-9_\-]{1,56}", key) for key in found)
    assert opened.identity() == source("audio_folder", tmp_path).identity()


def test_paths_that_lead_out_of_a_corpus_are_not_followed(tmp_path: Path) -> None:
    secret = write_sound(tmp_path / "secret.wav", speechlike(6.0))
    corpus = tmp_path / "corpus"
    for path in ("../secret.wav", str(secret), "audio/../../secret.wav", "file:///etc/passwd", "", ".", "a\0b"):
        opened = source("wenetspeech", wenetspeech(corpus, path))
        assert set(kinds_of(opened).values()) == {"outside"}
    folder = tmp_path / "cv/en"
    lines(folder / "validated.tsv", "client_id\tpath\tsentence", "c\t../../../secret.wav\thello", "c\t/etc/x.mp3\thi")
    assert set(kinds_of(source("common_voice", folder)).values()) == {"outside"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus", "cv", "secret.wav"]


def test_the_users_own_manifest_and_links_may_lead_anywhere(tmp_path: Path) -> None:
    write_sound(tmp_path / "far/a.wav", speechlike(1.0))
    (tmp_path / "near").mkdir()
    rows = [json.dumps({"audio_filepath": path}) for path in ("../far/a.wav", str(tmp_path / "far/a.wav"))]
    assert set(kinds_of(source("jsonl", lines(tmp_path / "near/m.jsonl", *rows))).values()) == {"sound"}
    (tmp_path / "near/linked").symlink_to(tmp_path / "far")
    assert kinds_of(source("audio_folder", tmp_path / "near")).popitem()[1] == "sound"


def test_manifests_and_sound_behind_urls(tmp_path: Path) -> None:
    wave = speechlike(1.0)
    for name, content in (
        ("set/m.jsonl", b'{"audio_filepath": "wavs/a.flac", "text": "hello"}\n{"audio_filepath": "wavs/no.flac"}\n'),
        ("set/wavs/a.flac", write_sound(tmp_path / "a.flac", wave).read_bytes()),
    ):
        with fsspec.open(f"memory://{name}", "wb") as remote:
            remote.write(content)
    opened = open_speech_source(SpeechSourceConfig(kind="jsonl", path="memory://set/m.jsonl"))
    first, second = opened.recordings()
    assert np.array_equal(opened.sound(first).samples.T, wave)
    assert kind_of(opened, second) == "missing"
    with pytest.raises(BadInput, match=r"memory://set/none\.jsonl does not exist"):
        list(open_speech_source(SpeechSourceConfig(kind="jsonl", path="memory://set/none.jsonl")).recordings())
    with pytest.raises(BadInput, match="is no folder"):
        list(open_speech_source(SpeechSourceConfig(kind="audio_folder", path="memory://set")).recordings())


@given(st.text(max_size=300), st.text(max_size=300))
def test_keys_are_safe_and_tell_names_apart(one: str, other: str) -> None:
    key = safe_key(one)
    assert re.fullmatch(rf"[A-Za-z0-9_\-]{{1,{LONGEST_KEY}}}", key)
    assert key == safe_key(one)
    assert (key == safe_key(other)) == (one == other)
    assert safe_key(key) != key or key == one  # no name can pass for the key of another


def test_keys_can_be_read() -> None:
    assert safe_key("84-121123-0000") == "84-121123-0000"
    assert re.fullmatch("Groe_7_5_cafe-x[0-9a-f]{20}", safe_key("Größe 7.5/café"))
    assert safe_key("dir/name").startswith("dir_name-x")


def test_identity_changes_with_what_is_there(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", speechlike(1.0))
    lines(tmp_path / "a.txt", "hello")
    seen = [source("audio_folder", tmp_path).identity()]
    assert source("audio_folder", tmp_path).identity() == seen[0]
    for change in (
        lambda: write_sound(tmp_path / "b.wav", speechlike(1.0)),
        lambda: write_sound(tmp_path / "a.wav", speechlike(1.5)),
        lambda: lines(tmp_path / "a.txt", "hullo"),
        lambda: (tmp_path / "b.wav").unlink(),
    ):
        change()
        seen.append(source("audio_folder", tmp_path).identity())
    seen.append(source("audio_folder", tmp_path, transcript=".lab").identity())
    assert max(Counter(seen).values()) == 1


def test_ten_thousand_tiny_files_are_listed_in_seconds(tmp_path: Path) -> None:
    tiny = write_sound(tmp_path / "a.flac", speechlike(0.05))
    for number in range(10_000):
        folder = tmp_path / f"many/{number % 100:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(tiny, folder / f"{number}.flac")
        (folder / f"{number}.txt").write_text(f"text {number}")
    opened = source("audio_folder", tmp_path / "many")
    start = time.process_time()
    found = list(opened.recordings())
    opened.identity()
    assert time.process_time() - start < 10  # it took 0.8 s when this was written
    assert len(found) == 10_000 and found[1].segments[0].text == "text 100"


def test_a_three_hour_file_is_read_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own: its peak is the test's. The file's samples would be 691 MB as float32."""
    file = tmp_path / "long.flac"
    minute = speechlike(60.0)
    with soundfile.SoundFile(file, "w", 16_000, 1, "PCM_16", compression_level=0.0) as long:
        for _ in range(180):
            long.write(minute)
    code = f"""
from configs.schema import SpeechSourceConfig
from data_pipeline.sources.recording import UnreadableAudio
from data_pipeline.sources.speech import open_speech_source
from tests.data_pipeline.sounds import peak_megabytes
source = open_speech_source(SpeechSourceConfig(kind="audio_folder", path={str(tmp_path)!r}))
(recording,) = source.recordings()
before = peak_megabytes()
print(sum(block.samples.shape[1] for block in source.blocks(recording)))
print(source.sound(recording, 10_700.0, 10_730.0).samples.shape[1])
print(peak_megabytes() - before)
try:
    source.sound(recording)
except UnreadableAudio as error:
    print(error.kind)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    samples, stretch, megabytes, kind = out.stdout.split()
    assert (int(samples), int(stretch), kind) == (3 * 3600 * 16_000, 30 * 16_000, "too_long")
    assert 1 < float(megabytes) < 80
