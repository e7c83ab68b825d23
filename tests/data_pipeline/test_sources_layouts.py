"""Sources of speech as corpora are distributed: each is written here as it lies on a disk, and read back."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import SpeechSourceConfig
from data_pipeline.sources.recording import MIXED, Recording, Segment, SpeechSource
from data_pipeline.sources.speech import KINDS, open_speech_source
from runtime.exits import BadInput
from tests.data_pipeline.sounds import speechlike, write_sound


def source(kind: str, path: Path, split: str | None = None, **options: object) -> SpeechSource:
    return open_speech_source(SpeechSourceConfig(kind=kind, path=str(path), split=split, options=options))


def read(kind: str, path: Path, split: str | None = None, **options: object) -> list[Recording]:
    return list(source(kind, path, split, **options).recordings())


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ("\n".join(rows) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_folder_of_audio(tmp_path: Path) -> None:
    for name in ("b/two.flac", "b/two.wav", "a/one.wav", "a/three.m4a", "a/notes.pdf.txt"):
        if name.endswith(".txt"):
            lines(tmp_path / name, "no audio beside")
        else:
            write_sound(tmp_path / name, speechlike(0.5))
    lines(tmp_path / "a/one.txt", "first line", "second line")
    (tmp_path / "a/three.txt").touch()
    (tmp_path / "b/up").symlink_to(tmp_path)  # a loop
    found = read("audio_folder", tmp_path, speakers=True)
    assert [Path(recording.audio.file).name for recording in found] == ["one.wav", "three.m4a", "two.flac", "two.wav"]
    assert found[0].segments == (Segment(text="first line second line", speaker="a", channel=MIXED),)
    assert found[1].segments == (Segment(speaker="a", channel=MIXED),)  # an empty transcript: speech without text
    assert found[2].segments == found[3].segments == ()  # to be cut
    assert [r.key for r in read("audio_folder", tmp_path, "a")] == ["one", "three"]
    assert len({recording.key for recording in found}) == 4


def test_nemo_manifest(tmp_path: Path) -> None:
    write_sound(tmp_path / "calls/7.wav", speechlike(4.0, channels=2))
    write_sound(tmp_path / "elsewhere/8.wav", speechlike(1.0))
    rows = [
        {"audio_filepath": "calls/7.wav", "offset": 0.5, "duration": 1.0, "text": "one", "speaker": "a", "lang": "de"},
        {"audio_filepath": "calls/7.wav", "offset": 2.0, "duration": 1.5, "text": "two", "speaker": "b", "channel": 1},
        {"audio_filepath": str(tmp_path / "elsewhere/8.wav"), "duration": 1.0, "text": "three"},
        {"audio_filepath": "calls/7.wav"},
    ]
    manifest = lines(tmp_path / "train.jsonl.gz", *(json.dumps(row) for row in rows))
    opened = source("jsonl", manifest)
    call, other, uncut = opened.recordings()
    assert call.key == "7-1"
    assert call.segments == (
        Segment(0.5, 1.5, "one", speaker="a", language="de"),
        Segment(2.0, 3.5, "two", speaker="b", channel=1),
    )
    assert other.segments == (Segment(text="three", channel=MIXED),) and uncut.segments == ()
    assert (call.duration, other.duration, uncut.duration) == (None, 1.0, None)
    assert opened.sound(call, 2.0, 3.5).samples.shape == (2, 24_000)
    assert opened.sound(other).duration == 1.0


def test_tables_with_columns_of_their_own(tmp_path: Path) -> None:
    write_sound(tmp_path / "wavs/a.wav", speechlike(1.0))
    row = 'a.wav\ts1\tshe said "no\t0.25\t0.75\tdev'
    table = lines(tmp_path / "t.tsv", "file\tname\twords\tfrom\tto\tsplit", row, row.replace("dev", "test"))
    names = {"audio": "file", "id": "name", "text": "words", "offset": "from", "end": "to"}
    (found,) = read("tsv", table, "dev", audio_folder=str(tmp_path / "wavs"), **names)
    assert (found.key, found.segments) == ("s1", (Segment(0.25, 0.75, 'she said "no', channel=MIXED),))
    comma = lines(tmp_path / "t.csv", "path,text", 'wavs/a.wav,"well, yes"')
    assert read("tsv", comma, delimiter=",")[0].segments[0].text == "well, yes"


def test_manifests_tell_styles_and_what_belongs_together(tmp_path: Path) -> None:
    """All that a speaker said is one document, so that one utterance can prompt another."""
    rows = [
        {"audio_filepath": f"{number}.wav", "text": "la la", "document": speaker, "style": style}
        for number, (speaker, style) in enumerate([("Ann B.", ""), ("Ann B.", "RAP"), ("", "")])
    ]
    manifest = lines(tmp_path / "t.jsonl", *(json.dumps(row) for row in rows))
    first, second, alone = read("jsonl", manifest)
    assert first.document == second.document != "" and alone.document == ""
    assert [found.segments[0].style for found in (first, second, alone)] == ["", "RAP", ""]


def test_kaldi_folder(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "calls/r1.wav", speechlike(5.0))
    data = tmp_path / "data/train"
    lines(data / "wav.scp", f"r1 {file}", f"r2\t{file}")
    lines(data / "text", "u1 hello there", "u2", "r9 not here")
    lines(data / "utt2spk", "u1 anna", "u2 bo")
    lines(data / "segments", "u2 r1 3.0 -1", "u1 r1 0.5 2.25")
    first, second = read("kaldi", tmp_path / "data", "train")
    assert first.segments == (
        Segment(0.5, 2.25, "hello there", speaker="anna", channel=MIXED),
        Segment(3.0, None, speaker="bo", channel=MIXED),
    )
    assert (second.key, second.segments) == ("r2", ())
    (data / "segments").unlink()
    lines(data / "text", "r1 all of it")
    lines(data / "utt2lang", "r1 fr")
    first, second = read("kaldi", data)
    assert first.segments == (Segment(text="all of it", language="fr", channel=MIXED),) and second.segments == ()


@pytest.mark.parametrize("line", ["r1 touch ran |", "r1 sph2pipe -f wav a.sph|", "r1 | cat"])
def test_kaldi_commands_are_not_run(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "wav.scp", line)
    with pytest.raises(BadInput, match="line 1 is a command; commands are not run"):
        read("kaldi", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["wav.scp"]


def librispeech(folder: Path) -> Path:
    for chapter, words in (("84/121123", ("GO", "DO YOU HEAR")), ("84/9", ("YES",))):
        reader, number = chapter.split("/")
        place = folder / "LibriSpeech/dev-clean" / chapter
        names = [f"{reader}-{number}-{utterance:04d}" for utterance in range(len(words))]
        for name in names:
            write_sound(place / f"{name}.flac", speechlike(0.5))
        said = [f"{name} {text}" for name, text in zip(names, words, strict=True)]
        lines(place / f"{reader}-{number}.trans.txt", *said)
    return folder


def test_librispeech(tmp_path: Path) -> None:
    opened = source("librispeech", librispeech(tmp_path), "dev-clean")
    found = list(opened.recordings())
    assert [recording.key for recording in found] == ["84-121123-0000", "84-121123-0001", "84-9-0000"]
    assert [recording.document for recording in found] == ["84-121123", "84-121123", "84-9"]
    assert found[1].segments == (Segment(text="DO YOU HEAR", speaker="84", language="en"),)
    assert opened.licence == "CC-BY-4.0" and opened.sound(found[1]).rate == 16_000
    assert len(read("librispeech", tmp_path / "LibriSpeech")) == 3
    with pytest.raises(BadInput, match="no train-clean-100"):
        read("librispeech", tmp_path, "train-clean-100")


def aishell(folder: Path) -> Path:
    root = folder / "data_aishell"
    said = ("BAC009S0002W0122 而 对 楼市 成交 抑制", "BAC009S0724W0121 广州 市")
    lines(root / "transcript/aishell_transcript_v0.8.txt", *said)
    for part, speaker, name in (
        ("train", "S0002", "BAC009S0002W0122"),
        ("train", "S0002", "BAC009S0002W9999"),
        ("dev", "S0724", "BAC009S0724W0121"),
    ):
        write_sound(root / "wav" / part / speaker / f"{name}.wav", speechlike(0.5))
    return root


def test_aishell(tmp_path: Path) -> None:
    root = aishell(tmp_path)
    (found,) = read("aishell", tmp_path, "train")
    assert found.segments == (Segment(text="而对楼市成交抑制", speaker="S0002", language="zh"),)
    assert [recording.key for recording in read("aishell", root)] == ["BAC009S0002W0122", "BAC009S0724W0121"]
    assert read("aishell", root, "dev", keep_spaces=True)[0].segments[0].text == "广州 市"


def wenetspeech(folder: Path, path: str = "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus") -> Path:
    audio = {
        "aid": "Y0000000000_--5llN02F84",
        "duration": 6.0,
        "md5": "48af998ec7dab6964386c3522386fa4b",
        "path": path,
        "source": "youtube",
        "tags": ["drama"],
        "url": "https://www.youtube.com/watch?v=--5llN02F84",
        "segments": [
            {"sid": "S0", "confidence": 1.0, "begin_time": 0.08, "end_time": 2.4, "subsets": ["L"], "text": "怎么样"},
            {"sid": "S1", "confidence": 0.9, "begin_time": 2.4, "end_time": 3.0, "subsets": ["W"], "text": "嗯"},
            {"sid": "S2", "confidence": 1.0, "begin_time": 3.0, "end_time": 5.28, "subsets": ["M", "L"], "text": "好"},
        ],
    }
    unlabelled = {**audio, "aid": "Y2", "segments": []}
    content = {"dataset": "WenetSpeech", "language": "ZH", "version": "v1.0", "audios": [audio, unlabelled]}
    lines(folder / "WenetSpeech.json", json.dumps(content, indent=4, ensure_ascii=False))
    return folder


def test_wenetspeech(tmp_path: Path) -> None:
    root = wenetspeech(tmp_path)
    write_sound(root / "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus", speechlike(6.0))
    opened = source("wenetspeech", root, "L")
    (found,) = opened.recordings()
    quality = (("confidence", 1.0),)
    assert found.key == "Y0000000000_--5llN02F84" and found.duration == 6.0
    assert found.segments == (
        Segment(0.08, 2.4, "怎么样", language="zh", quality=quality),
        Segment(3.0, 5.28, "好", language="zh", quality=quality),
    )
    assert opened.sound(found).duration == pytest.approx(6.0, abs=0.01)
    assert len(read("wenetspeech", root, "M")[0].segments) == 1
    assert len(read("wenetspeech", root, lowest_confidence=0.5)[0].segments) == 3
    with pytest.raises(BadInput, match="no recordings in split XL"):
        read("wenetspeech", root, "XL")


def gigaspeech(folder: Path) -> None:
    def segment(number: int, text: str, speaker: str = "N/A", subsets: tuple[str, ...] = ("{XL}", "{XS}")) -> dict:
        times = {"begin_time": number * 2.0, "end_time": number * 2.0 + 1.5}
        return {"sid": f"POD1_S{number:07d}", "speaker": speaker, "subsets": subsets, "text_tn": text, **times}

    audio = {
        "title": "a podcast",
        "aid": "POD1000000004",
        "path": "audio/podcast/P0001/POD1000000004.opus",
        "format": "opus",
        "sample_rate": 16000,
        "channels": 1,
        "duration": 8.0,
        "subsets": ["{XL}"],
        "segments": [
            segment(0, "DOUGLAS MCGRAY IS GOING TO BE OUR GUIDE <COMMA> YOU SEE <PERIOD>", "Douglas"),
            segment(1, "<MUSIC>"),
            segment(2, "REALLY <QUESTIONMARK> YES <EXCLAMATIONPOINT>", subsets=("{XL}",)),
        ],
    }
    lines(folder / "GigaSpeech.json", json.dumps({"dataset": "GigaSpeech", "audios": [audio]}))
    write_sound(folder / audio["path"], speechlike(8.0))


def test_gigaspeech(tmp_path: Path) -> None:
    gigaspeech(tmp_path)
    (found,) = read("gigaspeech", tmp_path)
    assert found.segments == (
        Segment(0.0, 1.5, "douglas mcgray is going to be our guide, you see.", speaker="Douglas", language="en"),
        Segment(4.0, 5.5, "really? yes!", language="en"),
    )
    (small,) = read("gigaspeech", tmp_path, "XS", lower_case=False)
    assert [said.text for said in small.segments] == ["DOUGLAS MCGRAY IS GOING TO BE OUR GUIDE, YOU SEE."]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_large_json_is_read_an_entry_at_a_time(tmp_path: Path, chunk: int) -> None:
    from data_pipeline.sources.speech.long_form import read_audios

    entries = [{"aid": f"é{number}", "of": [1, {"x": ']}\\"'}] * number} for number in range(20)]
    file = lines(tmp_path / "x.json", json.dumps({"audios_of": [], "audios": entries, "more": [1]}, indent=1))
    assert list(read_audios(file, chunk)) == entries
    file.write_text(file.read_text()[:500])
    with pytest.raises(BadInput, match="breaks off"):
        list(read_audios(file, chunk))
    with pytest.raises(BadInput, match="no list"):
        list(read_audios(lines(file, '{"x": []}'), chunk))


def common_voice(folder: Path) -> Path:
    folder = folder / "cv-corpus-17.0/ga-IE"
    columns = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant"
    head = f"{columns} locale segment".replace(" ", "\t")
    rows = [
        'c1\tcommon_voice_1.mp3\tx\tTá "sé\t\t2\t1\t\t\t\t\tga-IE\t',
        "c2\tcommon_voice_2.mp3\ty\tDia duit\t\t3\t0\t\t\t\t\t\t",
    ]
    lines(folder / "validated.tsv", head, *rows)
    lines(folder / "dev.tsv", head, rows[1])
    lines(folder / "clip_durations.tsv", "clip\tduration[ms]", "common_voice_1.mp3\t1008")
    for number in (1, 2):
        write_sound(folder / f"clips/common_voice_{number}.mp3", speechlike(1.0, 32_000), 32_000)
    return folder


def test_common_voice(tmp_path: Path) -> None:
    folder = common_voice(tmp_path)
    opened = source("common_voice", folder)
    first, second = opened.recordings()
    votes = (("up_votes", 2.0), ("down_votes", 1.0))
    assert first.segments == (Segment(text='Tá "sé', speaker="c1", language="ga-IE", quality=votes),)
    assert second.segments[0].language == "ga-IE" and (first.duration, second.duration) == (1.008, None)
    assert opened.sound(first).rate == 32_000
    assert [recording.key for recording in read("common_voice", folder, "dev")] == ["common_voice_2"]
    with pytest.raises(BadInput, match="has clip_durations, dev, validated"):
        read("common_voice", folder, "train")


def fisher(folder: Path) -> np.ndarray:
    wave = speechlike(6.0, 8_000, channels=2)
    write_sound(folder / "LDC2004S13/001/audio/000/fe_03_00001.sph", wave, 8_000)
    lines(
        folder / "LDC2004T19/data/trans/000/fe_03_00001.txt",
        "# fe_03_00001.sph",
        "# Transcribed at the LDC",
        "",
        "1.41 3.97 A: hi ((how are)) you [laughter]",
        "0.50 1.90 B: hello",
        "",
        "4.00 4.50 B: [noise]",
        "4.00 5.25 A: (( ))",
    )
    lines(
        folder / "LDC2004T19/doc/fe_03_p1_calldata.tbl",
        "CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.ADL,APHNUM,APHSET,APHTYP,BPIN,BSX.ADL",
        "00001,20021212_18:39:14,ENG01,3.0,3.0,2602,f.a,x,1,2,1790,f.a",
    )
    return wave


def test_fisher_dialogue(tmp_path: Path) -> None:
    wave = fisher(tmp_path)
    opened = source("fisher", tmp_path)
    (call,) = opened.recordings()
    assert call.segments == (
        Segment(0.5, 1.9, "hello", speaker="1790", language="en", channel=1),
        Segment(1.41, 3.97, "hi how are you", speaker="2602", language="en", channel=0),
    )
    said = call.segments[0]
    sound = opened.sound(call, said.start, said.end)
    assert np.array_equal(sound.channel(said.channel), wave[4_000:15_200, 1])
    assert len(read("fisher", tmp_path, keep_marks=True)[0].segments) == 4
    stretches = read("fisher", tmp_path, window=1.5)
    assert [recording.key for recording in stretches] == ["fe_03_00001-0000", "fe_03_00001-0001"]
    assert stretches[1].segments == (
        Segment(speaker="2602", language="en"),
        Segment(speaker="1790", language="en", channel=1),
    )
    assert np.array_equal(opened.sound(stretches[1]).samples, wave[12_000:24_000].T)


def test_prompts_of_asterisk_as_debian_has_them(tmp_path: Path) -> None:
    folder = tmp_path / "en_US_f_Allison"
    for name in ("activated", "digits/1", "beep"):
        write_sound(folder / f"{name}.g722", speechlike(0.5))
    (tmp_path / "en").symlink_to(folder)
    said = ("; Core Asterisk Sounds in English", "", "activated: Activated: now.", "beep: [a tone]", "digits/1: one")
    lines(folder / "core-sounds-en.txt.gz", *said, "gone: not recorded")
    opened = source("asterisk", tmp_path / "en")
    first, second = opened.recordings()
    assert first.segments == (Segment(text="Activated: now.", speaker="en_US_f_Allison", language="en"),)
    assert second.segments[0].text == "one" and opened.licence == "CC-BY-SA-3.0"
    assert opened.sound(second).duration == pytest.approx(0.5, abs=0.05)
    assert len(read("asterisk", tmp_path / "en", "digits")) == 1
    lines(folder / "core-sounds-en.txt.gz", "../secret: out")
    with pytest.raises(BadInput, match="lead out of it"):
        read("asterisk", folder)


def test_licence_and_language_of_the_settings_win(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", speechlike(0.5))
    lines(tmp_path / "a.txt", "hallo")
    config = SpeechSourceConfig(kind="audio_folder", path=str(tmp_path), language="de", licence="CC0-1.0")
    opened = open_speech_source(config)
    assert (opened.licence, next(opened.recordings()).segments[0].language) == ("CC0-1.0", "de")
    assert source("audio_folder", tmp_path).licence == "not stated"


def test_settings_that_cannot_be_are_one_clear_line(tmp_path: Path) -> None:
    for kind, options, said in (
        ("tape", {}, "no such kind of speech source: tape; there are aishell, asterisk, audio_folder"),
        ("jsonl", {"colour": 1}, "speech source jsonl has no option 'colour'; it has audio, text"),
        ("jsonl", {"text": 1}, "option text must be text like 'text', got 1"),
        ("aishell", {"keep_spaces": "yes"}, "option keep_spaces must be true or false"),
        ("wenetspeech", {"lowest_confidence": True}, "option lowest_confidence must be a number"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            read(kind, tmp_path, **options)
        assert "\n" not in str(caught.value)
    for kind in KINDS:
        with pytest.raises(BadInput, match="does not exist"):
            read(kind, tmp_path / "nowhere")
        with pytest.raises(BadInput):
            read(kind, tmp_path)  # empty, or a folder where a file should be
