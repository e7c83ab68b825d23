"""What measurements mean: which nodes are sick, and why, beside the others' median or what is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median

from configs.schema import PreflightConfig
from launch.preflight.figures import Figure, figures
from launch.preflight.node import Finding, Report
from launch.preflight.space import Room

Nodes = Mapping[str, Report]


def judge(settings: PreflightConfig, nodes: Nodes) -> list[Finding]:
    """All that is wrong with the nodes' reports."""
    found = [Finding("health", (name,), line) for name, report in nodes.items() for line in report.troubles]
    lacking = [Finding("shared", (name,), line) for name, report in nodes.items() for line in report.lacks]
    found += lacking if len(sick(lacking)) < len(nodes) else _of_all(lacking)
    for name, figure in figures(settings).items():
        found += _low(name, figure, settings.least.get(name), nodes)
    return found + _unequal(nodes)


def judge_clocks(skew: float, offsets: Mapping[str, float]) -> list[Finding]:
    """Nodes whose clocks are more than `skew` seconds off the median node's. offsets: seconds ahead of one clock."""
    if len(offsets) == 2:  # nobody to tell which of the two is right
        (slow, behind), (fast, ahead) = sorted(offsets.items(), key=lambda item: item[1])
        said = f"{fast}'s clock is {ahead - behind:.3f} s ahead of {slow}'s; more than {skew:g} s"
        return [Finding("clock", (), said)] if ahead - behind > skew else []
    middle = median(offsets.values()) if offsets else 0.0
    return [
        Finding("clock", (name,), f"clock {offset - middle:+.3f} s off the median node's; more than {skew:g} s")
        for name, offset in offsets.items()
        if abs(offset - middle) > skew
    ]


def judge_room(rooms: Mapping[str, Room]) -> list[Finding]:
    """Nodes whose run folder has too little space for the stage's checkpoints; all of them are no node's fault."""
    short = {name: room for name, room in rooms.items() if room.free < room.needed}
    lines = [
        Finding(
            "space",
            (name,),
            f"run folder: {room.count} checkpoints of {_size(room.each)} take {_size(room.needed)}, "
            f"{_size(room.free)} are free",
        )
        for name, room in short.items()
    ]
    if short and len(short) == len(rooms):
        least = min(lines, key=lambda line: short[line.nodes[0]].free)
        return [Finding("space", (), least.said)]  # of one file system in most cases
    return lines


def judge_pairs(share: float, nodes: Nodes, named: set[str]) -> list[str]:
    """Lines about pairs of nodes that are slow together though neither of the two is slow with others."""
    speeds = {
        (name, peer): speed for name, report in nodes.items() for peer, speed in report.peers.items() if name < peer
    }
    if len(speeds) < 3:
        return []
    middle = median(speeds.values())
    return [
        f"{one} and {other}: {_number(speed)} GB/s between them, median of pairs {_number(middle)} GB/s"
        for (one, other), speed in speeds.items()
        if speed < share * middle and not {one, other} & named
    ]


def sick(findings: list[Finding]) -> list[str]:
    """The nodes that findings name, each once."""
    return list(dict.fromkeys(name for finding in findings for name in finding.nodes))


def _low(name: str, figure: Figure, least: float | None, nodes: Nodes) -> list[Finding]:
    values = {node: report.figures[name] for node, report in nodes.items() if name in report.figures}
    low, below = [], []
    for node, value in values.items():
        others = [other for peer, other in values.items() if peer != node]
        beside = f"; the others' median is {_number(median(others))} {figure.unit}" if others else ""
        said = f"{figure.title} {_number(value)} {figure.unit}"
        if least is not None and value < least:
            wanted = f"at least {least:g} {figure.unit} are wanted (cluster.preflight.least.{name})"
            below.append(Finding(name, (node,), f"{said}{beside}; {wanted}"))
        elif others and value < figure.share * median(others):
            low.append(Finding(name, (node,), said + beside))
    return [*(_of_all(below) if len(below) == len(nodes) > 1 else below), *low]


def _of_all(findings: list[Finding]) -> list[Finding]:
    """What all nodes have is no node's fault: one finding that names none."""
    count = len(sick(findings))
    said = f"on all {count} nodes, such as {findings[0].nodes[0]}: " if count > 1 else ""
    return [Finding(findings[0].check, (), said + findings[0].said)] if findings else []


def _unequal(nodes: Nodes) -> list[Finding]:
    found = []
    for fact in dict.fromkeys(fact for report in nodes.values() for fact in report.facts):
        values = {name: report.facts.get(fact, "unknown") for name, report in nodes.items()}
        common, votes = Counter(values.values()).most_common(1)[0]
        others = {name: value for name, value in values.items() if value != common}
        if not others:
            continue
        if 2 * votes > len(nodes):
            found += [
                Finding(fact, (name,), f"{fact} is {value}; {common} on {votes} of {len(nodes)} nodes")
                for name, value in others.items()
            ]
        else:
            groups = ", ".join(f"{name} has {value}" for name, value in values.items())
            found.append(Finding(fact, (), f"{fact} is not equal: {groups}"))
    return found


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _size(count: float) -> str:
    return f"{count / 1e9:,.3f} GB" if count < 1e11 else f"{count / 1e9:,.1f} GB"
