"""The run report: complete, self-contained, and whole when parts of the run are not."""

import io
import json
import math
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_pipeline.looking.spectrogram import MEL_BANDS, RANGE_DB, code_strip_png, encode_png, log_mel
from data_pipeline.shards import index_path
from runtime import records
from runtime.exits import BadInput
from runtime.run_files import STARTS_FILE
from tests.data_pipeline.synthetic import make_corpus
from train.metrics import MetricLog
from train.report import write_report, write_whole_report
from train.report.charts import MOST_POINTS, charts_of
from train.resilience import stragglers

SECTIONS = {"summary", "curves", "samples", "data", "checkpoints", "config", "environment"}
VOID = {"meta", "img", "input", "br", "link", "hr"}
CLOSING = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """Elements of a page, checked to be well nested."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.ids: set[str] = set()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words = ""
        self._open: list[str] = []
        self._script = ""
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self.ids.add(found.get("id") or "")
        self._script = found.get("id") or "" if tag == "script" else ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif "style" not in self._open:
            self.words += f" {data}"

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and kind in (found.get("class") or "").split(" ")]

    def data(self, name: str) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.scripts[name], parse_constant=refuse)

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


def _flac(seconds: float = 1.5, rate: int = 16000) -> bytes:
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC")
    return file.getvalue()


def _run(folder: Path, steps: int = 40, corpus: Path | None = None, **results: Any) -> Path:
    with MetricLog(folder, 0) as log:
        for step in range(1, steps + 1):
            terms = {"loss/lm": 5 - step / 50, "loss/text": 3.0, "loss/semantic": 5.0, "loss/audio": 5.5}
            mix = {"modality/text": 0.25, "modality/semantic": 0.75}
            rates = {"lr/trunk": 1e-4, "lr/head": 5e-4, "lr/embedding": 5e-4}
            log.step(
                {"step": step, "tokens": 900 * step, "audio_hours": step / 100, "loss": terms["loss/lm"], "mfu": None}
                | {"grad_norm": 1.0, "seconds": 0.5, "tokens_per_second": 1800.0, "audio_hours_per_second": 0.02}
                | {"padding": 0.01}
                | terms
                | mix
                | rates
            )
        log.validation({"step": 0, "loss": 8.0, "loss/lm": 8.0, "loss/text": 4.0, "loss/audio": 9.0})
        log.validation({"step": steps, "loss": 5.0, "loss/lm": 5.0, "loss/text": 3.5, "loss/audio": 6.0})
    (folder / "config.yaml").write_text(f"run:\n  name: 'loud {CLOSING}'\ntrain:\n  steps: {steps}\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.13"}}))
    told = {"status": "finished", "step": steps, "steps": steps, "entropy": {"audio": 8.0}, "damaged": {}}
    (folder / "results.json").write_text(json.dumps(told | {"corpus": str(corpus)} | results))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus", train_documents=2, audio=_flac())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Page:
    folder = _run(tmp_path_factory.mktemp("run"), corpus=corpus)
    (folder / "checkpoints/step-00000040").mkdir(parents=True)
    (folder / "checkpoints/step-00000040/manifest.json").write_text("{}")
    (folder / "checkpoints/step-00000020").mkdir()
    (folder / "checkpoints/step-00000030.partial").mkdir()
    (folder / "checkpoints/step-00000030.partial/manifest.json").write_text("{}")
    return Page(write_report(folder))


def test_every_section_is_there(page: Page) -> None:
    assert page.ids >= SECTIONS
    for key in ("loss", "lr", "grad_norm", "throughput", "audio_speed", "mix", "padding"):
        assert f"chart-{key}" in page.ids
    assert "chart-mfu" not in page.ids  # unknown on this device


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", page.html)


def test_the_headline_numbers(page: Page) -> None:
    assert "Finished: step 40 of 40" in page.text
    assert "6.000 nats a token 25.0 % below the unigram entropy of 8.000" in page.text
    assert "3.500 nats a token 4.000 before training" in page.text
    assert "MFU unknown" in page.text and "0:20 min" in page.text


def test_chart_data_is_strict_json_with_the_recorded_values(page: Page) -> None:
    charts = {chart["key"]: chart for chart in page.data("chart-data")}
    loss = charts["loss"]
    assert loss["x"] == list(range(1, 41))
    assert [line["name"] for line in loss["lines"]] == ["all", "text", "semantic", "audio"]  # lm is all of it
    assert loss["lines"][0]["y"][-1] == pytest.approx(4.2)
    assert {dots["name"]: dots["x"] for dots in loss["dots"]} == {"all": [0, 40], "text": [0, 40], "audio": [0, 40]}
    assert loss["levels"][0]["y"] == 8.0
    assert [line["name"] for line in charts["lr"]["lines"]] == ["trunk", "head, embedding"]
    assert charts["mix"]["style"] == "stack"


def test_names_cannot_break_out_of_the_page(page: Page) -> None:
    assert CLOSING not in page.html
    assert len(page.all("script")) == 3


def test_samples_can_be_seen_and_heard(page: Page) -> None:
    players = page.all("audio")
    assert 1 <= len(players) <= 6
    assert all((player["src"] or "").startswith("data:audio/flac;base64,") for player in players)
    assert len(page.all("img", "spectrogram")) == len(players)
    strips = page.data("strip-data")
    assert [strip["name"] for strip in strips[0]] == ["linguistic", "semantic"]
    assert all(0 <= code < 64 for strip in strips[0] for code in strip["codes"])
    assert page.all("button")[0]["data-start"] == "0.050"


def test_checkpoints_say_whether_they_are_complete(page: Page) -> None:
    assert "checkpoints/step-00000020 0 bytes incomplete" in page.text
    assert "checkpoints/step-00000030.partial 2 bytes incomplete" in page.text
    assert "checkpoints/step-00000040 2 bytes complete" in page.text


def test_the_page_stays_small(page: Page) -> None:
    assert len(page.html) < 5_000_000


# --- what may be missing ----------------------------------------------------------------------------------------


def test_an_absent_corpus_is_named(tmp_path: Path) -> None:
    page = Page(write_report(_run(tmp_path, corpus=tmp_path / "gone")))
    assert "The corpus cannot be opened" in page.text and page.ids >= SECTIONS


def test_a_corpus_without_audio_is_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", train_documents=1)
    assert "No validation sample of synthetic has its audio" in Page(write_report(_run(tmp_path, corpus=corpus))).text


@pytest.mark.parametrize("damage", ["audio", "tar", "index", "shard"])
def test_a_damaged_corpus_is_counted(tmp_path: Path, damage: str) -> None:
    sound = b"not a flac file" if damage == "audio" else _flac(0.2)
    corpus = make_corpus(tmp_path / "corpus", train_documents=1, valid_documents=3, audio=sound)
    shard = next((corpus / "valid").glob("*.tar"))
    if damage == "tar":
        shard.write_bytes(shard.read_bytes()[:512])
    elif damage == "index":
        index_path(shard).write_bytes(b"PK")
    elif damage == "shard":
        shard.unlink()
    page = Page(write_report(_run(tmp_path, corpus=corpus)))
    assert "could not be read from the corpus" in page.text and not page.all("audio")


def test_damage_met_while_training_is_shown(tmp_path: Path) -> None:
    assert "truncated 3" in Page(write_report(_run(tmp_path, damaged={"truncated": 3}))).text


def test_slow_ranks_are_a_table_where_there_were_any(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    assert "stragglers" not in Page(write_report(folder)).ids
    for slow, until in ((True, 20), (False, 40)):
        stragglers.write(folder, stragglers.Change(13, "node<7>", slow, 11, until, until + 9, 0.75, 0.21, "data"))
    stragglers.write(folder, stragglers.Change(2, "node0", True, 31, 40, 40, 0.5, 0.1, "forward"))
    text = Page(write_report(folder)).text
    assert "13 node<7> 11 to 40 0.75 s 21 % data" in text and "2 node0 31 on 0.5 s 10 % forward" in text


def test_starts_are_a_table(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    assert "starts" not in Page(write_report(folder)).ids
    for step, weights in ((1, 0.01), (41, 2.25)):
        phases = {"torch": 0.75, "weights": weights, "first step": 1.5}
        records.append(folder / STARTS_FILE, {"step": step, "seconds": sum(phases.values()), "phases": phases})
    text = Page(write_report(folder)).text
    assert "1 2.3 torch 0.8, first step 1.5 41 4.5 torch 0.8, weights 2.2, first step 1.5" in text


def test_a_run_without_its_files_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: early}\ntrain: {steps: 300}\n")
    page = Page(write_report(tmp_path))
    assert page.ids >= SECTIONS
    for name in ("metrics.jsonl", "validation.jsonl", "environment.json", "results.json"):
        assert name in page.text
    assert "Not finished: step 0 of 300 so far" in page.text


def test_unreadable_files_are_missing_files(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    (folder / "results.json").write_text('{"status": "fini')
    (folder / "config.yaml").write_text("a: [1\n")
    page = Page(write_report(folder))
    assert "results.json (unreadable)" in page.text and "config.yaml (unreadable)" in page.text


def test_a_stopped_run_says_where(tmp_path: Path) -> None:
    assert "Stopped at step 12 of 40" in Page(write_report(_run(tmp_path, status="stopped", step=12))).text


def test_no_run_folder_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run folder at"):
        write_report(tmp_path / "gone")
    with pytest.raises(BadInput, match="is not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- charts and pictures ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_a_gap_and_is_told(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    with MetricLog(folder, 39) as log:
        log.step({"step": 40, "loss": math.nan, "loss/lm": math.nan})
    page = Page(write_report(folder))
    assert "The loss of 1 step is not a finite number" in page.text
    assert page.data("chart-data")[0]["lines"][0]["y"][-1] is None


def test_long_runs_are_averaged_over_equal_stretches() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 3 * MOST_POINTS + 1)]
    (chart,) = charts_of(records, [], {})
    assert len(chart.x) == MOST_POINTS and chart.per_point == 3
    assert chart.x[0] == 2 and chart.lines[0].y[0] == 2.0


def test_shares_of_the_mix_add_up_whether_tokens_or_shares_are_recorded() -> None:
    records = [{"step": 1, "modality/text": 30, "modality/semantic": 90}]
    (chart,) = charts_of(records, [], {})
    assert [line.y for line in chart.lines] == [[0.25], [0.75]]


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 5000.0])
def test_a_tone_is_loudest_in_its_mel_band(hertz: float) -> None:
    rate = 16000
    spectrogram = log_mel(np.sin(2 * np.pi * hertz * np.arange(rate) / rate), rate)
    assert spectrogram.shape == (MEL_BANDS, 101)
    assert spectrogram.max() == 0 and spectrogram.min() >= -RANGE_DB - 1e-4
    mel = 2595 * np.log10(1 + np.array([hertz, rate / 2]) / 700)
    expected = mel[0] / mel[1] * (MEL_BANDS + 1) - 1
    assert abs(int(spectrogram[:, 50].argmax()) - expected) <= 1


def test_silence_has_a_spectrogram() -> None:
    assert np.isfinite(log_mel(np.zeros(1600, np.float32), 16000)).all()


def _pixels(png: bytes) -> np.ndarray:
    """Pixels [rows, columns, 3] of a PNG in true colour."""
    columns, rows = struct.unpack(">II", png[16:24])
    raster = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    lines = np.frombuffer(raster, np.uint8).reshape(rows, 1 + 3 * columns)
    assert (lines[:, 0] == 0).all()  # unfiltered
    return lines[:, 1:].reshape(rows, columns, 3)


def test_png_pixels_come_back() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (_pixels(encode_png(pixels)) == pixels).all()


def test_a_code_keeps_its_colour() -> None:
    strip = _pixels(code_strip_png(np.array([7, 4000, 7, 8])))
    assert strip.shape == (1, 4, 3)
    assert (strip[0, 0] == strip[0, 2]).all()
    assert len({tuple(colour) for colour in strip[0].tolist()}) == 3


def test_damage_by_kind_is_a_curve_that_begins_at_nothing() -> None:
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "damaged/checksum": 3}]
    (_, chart) = charts_of(records, [], {})
    assert chart.key == "damaged" and [(line.name, line.y) for line in chart.lines] == [("checksum", [0.0, 3.0])]


def test_what_is_measured_now_and_then_is_drawn_where_it_was_measured() -> None:
    records = []
    for step in range(1, 13):
        record = {"step": step, "seconds": 2.0, "time/data": 0.5, "time/forward": 1.0, "time/other": 0.5}
        if step % 5 == 0:
            record |= {"memory/host": step / 10, "norm/grad/trunk": 3.0, "norm/grad/layer-000": 2.0}
            record |= {"norm/param/trunk": 50.0, "norm/update/trunk": 0.5}
            record |= {"ranks/forward/mean": 1.0, "ranks/forward/max": 1.5}
        records.append(record)
    charts = {chart.key: chart for chart in charts_of(records, [], {})}
    drawn = {key: {line.name: line.y for line in chart.lines} for key, chart in charts.items()}
    assert drawn["time"] == {"data": [0.25] * 12, "forward": [0.5] * 12, "other": [0.25] * 12}
    assert charts["time"].style == "stack" and charts["time"].x == list(range(1, 13))
    for key, expected in {
        "memory": {"host": [0.5, 1.0]},
        "norm_grad": {"trunk": [3.0, 3.0]},
        "norm_grad_layers": {"layer-000": [2.0, 2.0]},
        "norm_update": {"trunk": [0.01, 0.01]},
        "slowest": {"forward": [1.5, 1.5]},
    }.items():
        assert drawn[key] == expected and charts[key].x == [5, 10], key


# --- a whole run ----------------------------------------------------------------------------------------------------


def stage_folder(folder: Path, kind: str, weights: str, **results: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"stage: {{name: {folder.name}, kind: {kind}, weights: {weights}}}\n")
    (folder / "results.json").write_text(json.dumps({"status": "finished", **results}))
    return folder


def test_every_stage_of_a_run_has_its_section(tmp_path: Path) -> None:
    losses = {"before": {"loss/text": 4.0, "loss/audio": 8.0}, "after": {"loss/text": 3.0, "loss/audio": 8.4}}
    first = stage_folder(tmp_path / "first", "train", "backbone", step=20, steps=20, validation=losses)
    last = stage_folder(
        tmp_path / "last", "evaluate", "first", measured={"WER": 0.125}, sounds={CLOSING: "said.wav", "lost": "no.wav"}
    )
    soundfile.write(last / "said.wav", np.zeros(160, np.float32), 16_000)
    page = Page(write_whole_report(tmp_path, [first, tmp_path / "later", last]))
    assert {"first", "last"} <= page.ids and "later" not in page.ids
    for shown in ("Finished: step 20 of 20", "begins with backbone", "-25.0 %", "+5.0 %", "uses first", "0.125"):
        assert shown in page.words, shown
    players = [attributes for tag, attributes in page.elements if tag == "audio"]
    assert len(players) == 1 and str(players[0]["src"]).startswith("data:audio/wav;base64,")
    assert CLOSING not in page.html
    assert "No stage of this run has begun" in Page(write_whole_report(tmp_path, [])).words
