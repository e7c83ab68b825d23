"""The end of a run: figures beside each other, the aims, and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]
_PHASES = ("forward", "backward", "optimizer", "communication", "other")

# Issue by issue these are what we want of one Hopper GPU: least MFU, and tokens a second over transformers'.
LEAST_MFU = {"3b rope": 0.50, "3b sqrt_alibi": 0.45, "1b rope": 0.45, "135m rope": 0.30}
LEAST_RATIO = 1.5


def lines(results: Results) -> Iterator[str]:
    found = results["measurements"]
    yield from _training(found)
    yield from _others(found)
    yield ""
    yield from ["toy sizes: no figure says anything"] if results["scale"] == "tiny" else _aims(found)
    failed = list(failures(found))
    if failed:
        yield ""
        yield "What failed:"
        yield from (f"  {name}: {why}" for name, why in failed)


def _training(found: Results) -> Iterator[str]:
    yield f"{'training step':34} {'tokens/s':>10} {'MFU':>6} {'GiB':>6}  forward/backward/optimizer/communication/other"
    for name, figures in _parts(found):
        if "tokens_a_second" not in figures:
            continue
        split = figures.get("time_split")
        shares = "/".join(f"{100 * split[phase]:.0f}" for phase in _PHASES) + " %" if split else _how(figures)
        yield (
            f"{name:34} {figures['tokens_a_second']:>10,.0f} {_percent(figures['mfu']):>6} "
            f"{_number(figures.get('peak_gib')):>6}  {shares}"
        )


def _how(figures: Results) -> str:
    return f"{figures['attention']}{', compiled' if figures['compiled'] else ''}"


def _others(found: Results) -> Iterator[str]:
    yield ""
    for name, figures in _parts(found):
        if "tokens_a_second" in figures or "failed" in figures:
            continue
        said = [f"{key} {_plain(value)}" for key, value in figures.items() if not isinstance(value, list)]
        yield f"{name}: {', '.join(said)}"


def _aims(found: Results) -> Iterator[str]:
    for aim, least in LEAST_MFU.items():
        mfu = _figures(found, f"{aim}: ours").get("mfu")
        yield f"aim: MFU of {aim} at least {100 * least:.0f} %: {_met(mfu, least, _percent(mfu))}"
    for shape in ("3b", "1b", "135m"):
        ours, theirs = (_figures(found, f"{shape} rope: {who}") for who in ("ours", "transformers"))
        if "tokens_a_second" in ours and "tokens_a_second" in theirs:
            ratio = ours["tokens_a_second"] / theirs["tokens_a_second"]
            yield f"aim: {shape} at least {LEAST_RATIO} x transformers: {_met(ratio, LEAST_RATIO, f'{ratio:.2f}')}"
            if "peak_gib" in ours and "peak_gib" in theirs:
                share = theirs["peak_gib"] / ours["peak_gib"]
                yield f"aim: {shape} at no more memory: {_met(share, 1.0, f'{1 / share:.2f} of theirs')}"
        else:
            yield f"aim: {shape} at least {LEAST_RATIO} x transformers: not measured"
    bf16, fp8 = (_figures(found, f"3b rope: {who}").get("tokens_a_second") for who in ("ours", "ours in fp8"))
    yield f"3b in fp8 over bf16: {f'{fp8 / bf16:.2f}' if fp8 and bf16 else 'not measured'}"


def _met(value: float | None, least: float, said: str) -> str:
    if value is None:
        return "not measured"
    return f"{'met' if value >= least else 'NOT MET'}, {said}"


def failures(found: Results) -> Iterator[tuple[str, str]]:
    for name, one in found.items():
        if one["state"] != "done":
            yield name, f"{one['state']}: {one.get('why', '')}"
        for part, figures in one.get("parts", {}).items():
            title = f"{name} ({part})" if part else name
            if "failed" in figures:
                yield title, figures["failed"]
            if figures.get("holds") is False:
                yield title, "outside of what is allowed"


def _parts(found: Results) -> Iterator[tuple[str, Results]]:
    for name, one in found.items():
        for part, figures in one.get("parts", {}).items():
            yield (f"{name} ({part})" if part else name), figures


def _figures(found: Results, name: str) -> Results:
    figures: Results = found.get(name, {}).get("parts", {}).get("", {})
    return figures


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
