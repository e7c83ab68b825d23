"""Which samples of a shard a condition keeps, from its index alone.

A condition is a Python expression over numbers (the columns of an index, `duration` in seconds, `characters`) and names
(`language`, `speaker`, `source`, `role`, `style`):

    1 <= duration <= 30 and wer < 0.2 and (dnsmos_ovrl > 2.8 or source == "studio") and language in ["en", "zh"]

Comparisons (also chained), `in` and `not in` a list, `and`, `or`, `not`, `+ - * /` and brackets are all there is. A
number that was not measured is missing, and so is what is computed of it, and what is divided by zero. Every comparison
with a missing number is false, `!=` and `not in` too; `wer is missing` and `wer is not missing` ask for it. So
`not (wer > 0.2)` keeps what was not measured, `wer <= 0.2` does not. A name is missing where it is empty. Numbers are
compared in float32, as columns are stored: what was measured as 0.2 equals 0.2.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np

from data_pipeline.shards import LABELS, ShardIndex
from runtime.exits import BadInput

NUMBERS = ("duration", "characters")  # numbers of every index, beside its columns
MISSING = "missing"
_DEEPEST = 50  # nested operations
_LONGEST = 10_000  # characters

_Rows = Callable[[str], np.ndarray]  # column or label by name
_Evaluate = Callable[[_Rows], np.ndarray]
_COMPARISONS: dict[type[ast.cmpop], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


@dataclass(frozen=True)
class Filter:
    """A parsed condition: `names` are the columns and labels it asks for, sorted."""

    expression: str
    names: tuple[str, ...]
    clauses: tuple[Filter, ...]  # what its outermost `and` joins, in order
    _evaluate: _Evaluate

    def __reduce__(self) -> tuple[Callable[[str], Filter], tuple[str]]:
        return parse_filter, (self.expression,)

    def keep(self, index: ShardIndex, columns: Collection[str] = ()) -> np.ndarray:
        """bool [samples]. `columns` are those of the whole corpus: one that this shard lacks is missing in all of it.
        Raises BadInput for a name that neither has."""
        unknown = [name for name in self.names if name not in known_names(index.columns) and name not in columns]
        if unknown:
            there = ", ".join(sorted({*known_names(index.columns), *columns}))
            raise BadInput(f"filter {self.expression!r}: no column {unknown[0]}; there are {there}")

        def rows(name: str) -> np.ndarray:
            if name in LABELS:  # an index written before there were labels has none
                return index.labels[name] if name in index.labels else np.full(len(index), "")
            values = getattr(index, name) if name in NUMBERS else index.columns.get(name)
            return np.full(len(index), np.nan) if values is None else values.astype(np.float64)

        with np.errstate(all="ignore"):
            return np.array(np.broadcast_to(self._evaluate(rows), len(index)))


def known_names(columns: Iterable[str]) -> tuple[str, ...]:
    """All that a filter can ask for where a corpus has `columns`."""
    return (*NUMBERS, *LABELS, *columns)


def parse_filter(expression: str) -> Filter:
    """Raises BadInput, naming the place, for what is not a condition as described above."""
    source = expression.replace("\n", " ").strip()
    if len(source) > _LONGEST:
        raise BadInput(f"filter {source[:60]!r}...: longer than {_LONGEST} characters")
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = f"character {error.offset}: " if isinstance(error, SyntaxError) and error.offset else ""
        raise BadInput(f"filter {source!r}: {at}{getattr(error, 'msg', error)}") from error
    return _Parser(source).filter(tree)


class _Parser:
    """Turns a syntax tree into functions of numpy arrays, checking kinds on the way."""

    def __init__(self, source: str) -> None:
        self._source = source

    def filter(self, node: ast.expr) -> Filter:
        joined = node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else []
        return Filter(self._source, _names(node), tuple(map(self._clause, joined)), self._condition(node, 0))

    def _clause(self, node: ast.expr) -> Filter:
        return Filter(self._text(node), _names(node), (), self._condition(node, 1))

    def _text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self._source, node) or self._source

    def _refuse(self, node: ast.AST, problem: str) -> BadInput:
        before = self._source.encode()[: getattr(node, "col_offset", 0)].decode()
        return BadInput(f"filter {self._source!r}: {problem} at character {len(before) + 1}, {self._text(node)!r}")

    def _deeper(self, node: ast.AST, depth: int) -> int:
        if depth >= _DEEPEST:
            raise self._refuse(node, f"more than {_DEEPEST} nested operations")
        return depth + 1

    # --- conditions: bool arrays ---

    def _condition(self, node: ast.expr, depth: int) -> _Evaluate:
        depth = self._deeper(node, depth)
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(part, depth) for part in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return lambda rows: _joined(join, [part(rows) for part in parts])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inside = self._condition(node.operand, depth)
            return lambda rows: np.logical_not(inside(rows))
        if isinstance(node, ast.Compare):
            return self._comparison(node, depth)
        raise self._refuse(node, "a condition is needed, such as wer < 0.2,")

    def _comparison(self, node: ast.Compare, depth: int) -> _Evaluate:
        first = node.ops[0]
        if isinstance(first, ast.Is | ast.IsNot):
            return self._missing(node, isinstance(first, ast.Is), depth)
        links = []
        left = node.left
        for operation, right in zip(node.ops, node.comparators, strict=True):
            links.append(self._link(node, left, operation, right, depth))
            left = right
        return lambda rows: _joined(np.logical_and, [link(rows) for link in links])

    def _missing(self, node: ast.Compare, wanted: bool, depth: int) -> _Evaluate:
        right = node.comparators[0]
        if len(node.ops) > 1 or not (isinstance(right, ast.Name) and right.id == MISSING):
            raise self._refuse(node, f"'is' asks for {MISSING} only, as in wer is {MISSING},")
        value, is_text = self._value(node.left, depth)
        return lambda rows: (value(rows) == "" if is_text else np.isnan(value(rows))) == wanted

    def _link(self, whole: ast.Compare, left: ast.expr, operation: ast.cmpop, right: ast.expr, depth: int) -> _Evaluate:
        if isinstance(operation, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or len(whole.ops) > 1:
                raise self._refuse(whole, "'in' needs one list after it, such as ['en', 'zh'],")
            inside = isinstance(operation, ast.In)
            equal: ast.cmpop = ast.Eq() if inside else ast.NotEq()
            links = [self._link(whole, left, equal, item, depth) for item in right.elts]
            join = np.logical_or if inside else np.logical_and
            if not links:
                raise self._refuse(right, "an empty list")
            return lambda rows: _joined(join, [link(rows) for link in links])
        if type(operation) not in _COMPARISONS:
            raise self._refuse(whole, "'is' cannot be chained")
        compare = _COMPARISONS[type(operation)]
        (one, one_is_text), (other, other_is_text) = self._value(left, depth), self._value(right, depth)
        if one_is_text != other_is_text:
            raise self._refuse(whole, "a name is compared with a number")
        if one_is_text:
            return lambda rows: compare(one(rows), other(rows))
        return lambda rows: _compare_numbers(compare, one(rows), other(rows))

    # --- values: float64 or str arrays ---

    def _value(self, node: ast.expr, depth: int) -> tuple[_Evaluate, bool]:
        """What computes it, and whether it is text."""
        depth = self._deeper(node, depth)
        if isinstance(node, ast.Name) and node.id != MISSING:
            name = node.id
            return (lambda rows: rows(name)), name in LABELS
        if isinstance(node, ast.Constant):
            constant = node.value
            if isinstance(constant, str):
                text = np.array(constant)
                return (lambda rows: text), True
            if isinstance(constant, int | float) and not isinstance(constant, bool) and abs(constant) < 1e300:
                number = np.array(float(constant))
                return (lambda rows: number), False
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inside = self._number(node.operand, depth)
            sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
            return (lambda rows: sign * inside(rows)), False
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            compute, divides = _ARITHMETIC[type(node.op)], isinstance(node.op, ast.Div)
            one, other = self._number(node.left, depth), self._number(node.right, depth)
            return (lambda rows: _computed(compute, divides, one(rows), other(rows))), False
        raise self._refuse(node, "a column, a number or a text in quotes is needed")

    def _number(self, node: ast.expr, depth: int) -> _Evaluate:
        value, is_text = self._value(node, depth)
        if is_text:
            raise self._refuse(node, "arithmetic needs numbers")
        return value


def _names(node: ast.AST) -> tuple[str, ...]:
    return tuple(sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {MISSING}))


def _joined(join: Callable[[np.ndarray, np.ndarray], np.ndarray], parts: list[np.ndarray]) -> np.ndarray:
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole


def _computed(
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray], divides: bool, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    found = compute(one, other)
    return np.where(other == 0, np.nan, found) if divides else found


def _compare_numbers(
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray], one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    one, other = one.astype(np.float32), other.astype(np.float32)
    return compare(one, other) & ~np.isnan(one) & ~np.isnan(other)
