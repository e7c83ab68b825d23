"""Corpora on S3, spoken to over HTTP: the same packs, what a user sets is honoured, and each refusal is one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from configs.schema import SourceConfig, SpeechSourceConfig
from data_pipeline.build import corpus_folder
from data_pipeline.corpus import Corpus
from data_pipeline.loader import make_loader
from data_pipeline.remote import files
from data_pipeline.remote.opening import open_mirror
from data_pipeline.remote.storage import refusal
from data_pipeline.shards import DamagedSample, ShardReader
from data_pipeline.sources.speech import open_speech_source
from launch import cli
from runtime.exits import BadInput
from tests.data_pipeline.s3 import S3Server, Wire, s3_server
from tests.data_pipeline.sounds import speechlike, write_sound
from tests.data_pipeline.synthetic import make_corpus
from tests.data_pipeline.test_loader import assert_same
from tests.data_pipeline.test_remote import SOUND, config_at, packs_of

PLACE = "corpora/of/speech"
URL = f"s3://{PLACE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", train_documents=16, documents_per_shard=4, audio=SOUND)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("server")) as server:
        server.put(folder, PLACE)
        yield server


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not spoken to S3 yet, on a machine where nobody has set anything."""
    import s3fs

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.1)
    monkeypatch.setattr(fsspec.config, "conf", {})
    s3fs.S3FileSystem.clear_instance_cache()
    open_mirror.cache_clear()


def reach(monkeypatch: pytest.MonkeyPatch, url: str, key: str = "any", secret: str = "any") -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def test_packs_are_those_of_the_local_corpus_and_only_codes_are_fetched(
    folder: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    before = len(server.answers())
    with Wire(server.port) as wire:
        reach(monkeypatch, wire.url)
        assert_same(packs_of(config_at(tmp_path, URL)), expected)
    tars = [(how, path, status) for how, path, status in server.answers()[before:] if path.endswith(".tar")]
    assert {(how, status) for how, _, status in tars} == {("HEAD", 200), ("GET", 206)}
    asked = {Path(path).name for _, path, _ in tars}
    whole = sum(tar.stat().st_size for tar in folder.rglob("*.tar") if tar.name in asked)
    assert 0 < wire.received < whole / 20


def test_a_source_of_the_mixture_may_be_there_and_is_read_by_worker_processes(
    folder: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, server.url)
    config, other = config_at(tmp_path, str(folder)), config_at(tmp_path, str(folder))
    for each, where in ((config, str(folder)), (other, URL)):
        each.mixture.sources = {"tts": SourceConfig(layout="tts", weight=1.0, corpus=where)}
    other.loader.workers = 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its workers see the variables of today
        assert_same(pool.submit(packs_of, other, 2).result(), packs_of(config, 2))


def test_sound_and_manifests_of_a_speech_source_may_be_there(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, server.url)
    wave, system = speechlike(1.0), server.file_system()
    system.makedirs("recordings", exist_ok=True)
    system.pipe("recordings/m.jsonl", b'{"audio_filepath": "a.flac", "text": "hello"}\n')
    system.pipe("recordings/a.flac", write_sound(tmp_path / "a.flac", wave).read_bytes())
    opened = open_speech_source(SpeechSourceConfig(kind="jsonl", path="s3://recordings/m.jsonl"))
    (only,) = opened.recordings()
    assert np.array_equal(opened.sound(only).samples.T, wave)
    with server.strict(), pytest.raises(BadInput, match=r"^s3://recordings/m\.jsonl cannot be read: .*Forbidden"):
        list(opened.recordings())


# --- where a user says how S3 is reached --------------------------------------------------------------------------


@pytest.mark.parametrize("told_in", ["environment", "profile", "fsspec's environment", "fsspec's file"])
def test_endpoint_and_credentials_are_where_users_set_them(
    told_in: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = server.user("s3:GetObject", "s3:ListBucket")
    if told_in == "environment":
        reach(monkeypatch, server.url, key, secret)
    elif told_in == "profile":
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text(f"[profile voices]\nendpoint_url = {server.url}\n")
        (tmp_path / ".aws/credentials").write_text(
            f"[voices]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )
        monkeypatch.setenv("AWS_PROFILE", "voices")
    elif told_in == "fsspec's environment":
        told = {"FSSPEC_S3_ENDPOINT_URL": server.url, "FSSPEC_S3_KEY": key, "FSSPEC_S3_SECRET": secret}
        fsspec.config.set_conf_env(fsspec.config.conf, told)
    else:
        (tmp_path / "s3.ini").write_text(f"[s3]\nendpoint_url = {server.url}\nkey = {key}\nsecret = {secret}\n")
        fsspec.config.set_conf_files(str(tmp_path), fsspec.config.conf)
    with server.strict():
        assert Corpus.open(open_mirror(URL, tmp_path, 10**9)).totals


# --- refusals -----------------------------------------------------------------------------------------------------


def test_what_is_refused_or_not_there_is_one_line_at_once(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    def told(url: str = URL, **environment: str) -> str:
        with monkeypatch.context() as patch:
            reach(patch, server.url)
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(BadInput) as refused:
                open_mirror(url, tmp_path, 10**9)
            assert "\n" not in str(refused.value)
            return str(refused.value)

    began = time.monotonic()
    key, secret = server.user("s3:ListBucket")
    other, _ = server.user("s3:*")
    assert told("s3://nowhere/c") == "s3://nowhere/c/manifest.json cannot be read: The specified bucket does not exist"
    assert told("s3://corpora/no") == "s3://corpora/no has no manifest.json: it is not a corpus, or unfinished"
    assert "cannot be read: Parameter validation failed: Invalid bucket name" in told("s3://Not a Bucket!/c")
    assert told(AWS_ENDPOINT_URL="storage:9000").endswith("cannot be read: Invalid endpoint: storage:9000")
    assert "(nobody) could not be found" in told(AWS_PROFILE="nobody")
    with server.strict():
        assert "Access Key Id you provided does not exist" in told()
        assert "signature we calculated does not match" in told(AWS_ACCESS_KEY_ID=other, AWS_SECRET_ACCESS_KEY=secret)
        assert "Access Denied (also said of a file" in told(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(BadInput, match=r"/manifest\.json cannot be read: Unable to locate credentials$"):
            open_mirror(URL, tmp_path, 10**9)
    assert time.monotonic() - began < 20


def test_a_refusal_amid_training_ends_it_and_a_missing_shard_is_damage(
    folder: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, server.url)
    server.put(folder, "passing/c")
    corpus = Corpus.open(open_mirror("s3://passing/c", tmp_path, 10**9))
    first, second = corpus.shards("train")[:2]
    system = server.file_system()
    system.rm(f"passing/c/train/{first.name}")
    with pytest.raises(DamagedSample) as missing:
        ShardReader(first)
    assert missing.value.kind == "missing"
    with server.strict(), pytest.raises(BadInput, match=r"passing/c/train/.* cannot be read: "):
        ShardReader(second)
    system.rm("passing", recursive=True)
    with pytest.raises(BadInput, match=r"passing/c/train/.*The specified bucket does not exist"):
        ShardReader(second)


def test_without_the_package_the_line_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for protocol in ("s3", "s3a"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    assert cli.main(["data", "stats", URL]) == 2
    told = capsys.readouterr().err
    assert "s3fs" in told and told.count("\n") == 1
    with pytest.raises(BadInput, match="s3fs"):
        list(open_speech_source(SpeechSourceConfig(kind="jsonl", path="s3://recordings/m.jsonl")).recordings())


def test_a_corpus_is_not_built_there(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(monkeypatch, server.url)
    words = ["recipe=quickstart", "scale=tiny", "corpus.folder=s3://corpora/new"]
    assert cli.main(["data", "build", *words]) == 2
    told = capsys.readouterr().err
    assert "s3://corpora/new" in told and told.count("\n") == 1


# --- a storage that is away for a while ---------------------------------------------------------------------------


def test_a_server_killed_in_the_middle_of_an_answer_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = packs_of(config_at(tmp_path, str(folder)))
    with s3_server(tmp_path) as first:
        first.put(folder, PLACE)
        with Wire(first.port) as wire:
            reach(monkeypatch, wire.url)
            config = config_at(tmp_path, URL)
            loader = make_loader(config, Corpus.open(corpus_folder(config)), split="train", rank=0, world=1)
            returned = threading.Event()

            def die_and_return() -> None:
                first.kill()
                with s3_server(tmp_path) as second:
                    second.put(folder, PLACE)
                    wire.target = second.port
                    wire.mend()
                    returned.wait()

            wire.at, wire.then = wire.received + 2000, die_and_return
            try:
                assert_same([pack for _ in range(6) for pack in loader.next_step()], expected)
                assert loader.damaged == {}
            finally:
                loader.close()
                returned.set()
    assert first.process.returncode == -signal.SIGKILL
    assert "again in 0.1 s" in capfd.readouterr().err


@pytest.mark.parametrize("endpoint", ["http://no-such-name.invalid:9000", "http://localhost:1"])
def test_an_address_that_was_never_reached_is_told_soon(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, endpoint)
    monkeypatch.setattr(files, "FIRST_PATIENCE", 0.5)
    with pytest.raises(
        BadInput, match=r"Could not connect .*, tried for 0\.5 s; it was never reached from here: is the"
    ):
        open_mirror(URL, tmp_path, 10**9)


def test_a_server_that_was_reached_once_is_waited_for(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By another process too, which left its mirror."""
    monkeypatch.setattr(files, "FIRST_PATIENCE", 0.2)
    with Wire(server.port) as wire:
        reach(monkeypatch, wire.url)
        folder = open_mirror(URL, tmp_path, 10**9)
        wire.cut()
        open_mirror.cache_clear()
        mends = threading.Timer(1.5, wire.mend)
        mends.start()
        assert open_mirror(URL, tmp_path, 10**9) == folder
        mends.join()
    assert capfd.readouterr().err.count("Could not connect") >= 3


def test_a_server_that_hangs_is_told_and_asked_again(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reach(monkeypatch, server.url)
    fsspec.config.conf["s3"] = {"config_kwargs": {"read_timeout": 0.5}}
    os.kill(server.process.pid, signal.SIGSTOP)
    wakes = threading.Timer(2.0, os.kill, (server.process.pid, signal.SIGCONT))
    wakes.start()
    try:
        assert Corpus.open(open_mirror(URL, tmp_path, 10**9)).totals
    finally:
        wakes.cancel()
        os.kill(server.process.pid, signal.SIGCONT)
    assert "Read timeout" in capfd.readouterr().err


def test_faults_of_the_server_are_none_of_who_asks(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def answered(status: int, code: str) -> Exception:
        answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return translate_boto_error(ClientError(answer, "GetObject"))

    pass_by = [(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout"), (429, "TooManyRequests")]
    stay = [(400, "ExpiredToken"), (400, "400"), (403, "403"), (403, "RequestTimeTooSkewed"), (400, "InvalidToken")]
    assert [refusal(answered(*each)) for each in pass_by] == [None] * len(pass_by)
    assert None not in [refusal(answered(*each)) for each in stay]
    assert refusal(answered(404, "NoSuchKey")) is None
