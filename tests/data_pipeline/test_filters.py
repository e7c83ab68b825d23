"""Filters against Python's own evaluation, row by row, and what they refuse."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.quality.filters import parse_filter
from data_pipeline.shards import ShardIndex
from runtime.exits import BadInput

NUMBERS = ("wer", "snr", "duration", "characters")
NAMES = ("language", "speaker")


def make_index(rows: list[dict]) -> ShardIndex:
    count = len(rows)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype)

    zeros = np.zeros(count, np.int64)
    return ShardIndex(
        *[zeros] * 5,
        characters=column("characters", np.int32),
        duration=column("duration", np.float64),
        document=np.arange(count, dtype=np.int32),
        columns={name: column(name, np.float32) for name in ("wer", "snr")},
        labels={
            "language": column("language", np.str_),
            "speaker": column("speaker", np.str_),
            "source": np.full(count, "web"),
            "role": np.full(count, ""),
        },
    )


# --- an independent reading: Python's `eval` over objects that carry one number each ----------------------------------


class Number:
    """A number that compares as float32."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __add__(self, other: "Number") -> "Number":
        return number(self.value + other.value)

    def __sub__(self, other: "Number") -> "Number":
        return number(self.value - other.value)

    def __mul__(self, other: "Number") -> "Number":
        return number(self.value * other.value)

    def __truediv__(self, other: "Number") -> "Number":
        return number(self.value / other.value if other.value else float("nan"))

    def __neg__(self) -> "Number":
        return number(-self.value)

    def _order(self, other: "Number") -> set[str]:
        one, two = np.float32(self.value), np.float32(other.value)
        if np.isnan(one) or np.isnan(two):
            return set()
        return {"<", "<=", "!="} if one < two else {">", ">=", "!="} if one > two else {"==", "<=", ">="}

    def __lt__(self, other: "Number") -> bool:
        return "<" in self._order(other)

    def __le__(self, other: "Number") -> bool:
        return "<=" in self._order(other)

    def __gt__(self, other: "Number") -> bool:
        return ">" in self._order(other)

    def __ge__(self, other: "Number") -> bool:
        return ">=" in self._order(other)

    def __eq__(self, other: object) -> bool:
        return "==" in self._order(other)

    def __ne__(self, other: object) -> bool:
        return "!=" in self._order(other)


MISSING = Number(float("nan"))


def number(value: float) -> Number:
    return MISSING if np.isnan(value) else Number(value)


LITERAL = st.sampled_from(["0", "1", "2", "0.2", "2.5", "30", "1e3"]).map(lambda text: (text, f"number({text})"))
VALUE = st.recursive(
    st.one_of(st.sampled_from(NUMBERS).map(lambda name: (name, name)), LITERAL),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", f"({t[0][1]} {t[1]} {t[2][1]})")
        ),
        inner.map(lambda pair: (f"(-{pair[0]})", f"(-{pair[1]})")),
    ),
    max_leaves=4,
)
TEXT = st.one_of(st.sampled_from(NAMES), st.sampled_from(["'en'", "'zh'", "''", "'ann'"])).map(lambda t: (t, t))
ORDER = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


def chained(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(values, ORDER, values, ORDER, values).map(
        lambda t: tuple(f"({t[0][n]} {t[1]} {t[2][n]} {t[3]} {t[4][n]})" for n in (0, 1))
    )


def listed(values: st.SearchStrategy) -> st.SearchStrategy:
    def build(drawn: tuple) -> tuple[str, str]:
        value, items, inside = drawn
        written, meant = (", ".join(item[n] for item in items) for n in (0, 1))
        if inside:
            return f"{value[0]} in [{written}]", f"any({value[1]} == x for x in [{meant}])"
        return f"{value[0]} not in [{written}]", f"all({value[1]} != x for x in [{meant}])"

    return st.tuples(values, st.lists(values, min_size=1, max_size=3), st.booleans()).map(build)


CONDITION = st.recursive(
    st.one_of(
        chained(VALUE),
        chained(TEXT),
        listed(VALUE),
        listed(TEXT),
        VALUE.map(lambda pair: (f"{pair[0]} is missing", f"{pair[1]} is MISSING")),
        st.sampled_from(NAMES).map(lambda name: (f"{name} is not missing", f"{name} != ''")),
    ),
    lambda inner: st.one_of(
        inner.map(lambda pair: (f"not ({pair[0]})", f"not ({pair[1]})")),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda t: tuple(f"({t[0][n]}) {t[1]} ({t[2][n]})" for n in (0, 1))
        ),
    ),
    max_leaves=5,
)
ROW = st.fixed_dictionaries(
    {
        "wer": st.sampled_from([0.0, 0.2, 0.5, 1.0, float("nan")]),
        "snr": st.sampled_from([-2.5, 0.0, 2.0, 30.0, float("nan")]),
        "duration": st.sampled_from([0.0, 0.2, 2.5, 30.0, 1000.0]),
        "characters": st.integers(0, 40),
        "language": st.sampled_from(["en", "zh", ""]),
        "speaker": st.sampled_from(["ann", "bob", "", "en"]),
    }
)


@settings(max_examples=300)
@given(CONDITION, st.lists(ROW, max_size=6))
def test_a_filter_says_what_python_says_of_each_row(condition: tuple[str, str], rows: list[dict]) -> None:
    written, meant = condition
    kept = parse_filter(written).keep(make_index(rows))
    wanted = []
    for row in rows:
        names = {name: number(float(np.float32(row[name]))) for name in ("wer", "snr")}
        names |= {name: number(float(row[name])) for name in ("duration", "characters")}
        names |= {name: row[name] for name in NAMES}
        wanted.append(bool(eval(meant, {"number": number, "MISSING": MISSING} | names)))
    assert kept.dtype == bool and kept.tolist() == wanted


def rows_of(**columns: list) -> list[dict]:
    plain = {"wer": 0.0, "snr": 0.0, "duration": 1.0, "characters": 1, "language": "en", "speaker": ""}
    count = len(next(iter(columns.values())))
    return [plain | {name: values[i] for name, values in columns.items()} for i in range(count)]


def test_missing_numbers_fail_every_comparison_and_only_not_or_missing_keeps_them() -> None:
    index = make_index(rows_of(wer=[0.1, 0.2, 0.3, float("nan")]))
    for expression, kept in (
        ("wer <= 0.2", [1, 1, 0, 0]),
        ("wer != 0.2", [1, 0, 1, 0]),
        ("wer not in [0.2]", [1, 0, 1, 0]),
        ("not (wer > 0.2)", [1, 1, 0, 1]),
        ("wer <= 0.2 or wer is missing", [1, 1, 0, 1]),
        ("1 / (wer - wer) is missing", [1, 1, 1, 1]),
    ):
        assert parse_filter(expression).keep(index).tolist() == [bool(k) for k in kept], expression


def test_names_and_clauses_are_those_of_the_outermost_and() -> None:
    found = parse_filter('1 <= duration <= 30 and wer < 0.2 and (snr > 3 or source == "web")')
    assert found.names == ("duration", "snr", "source", "wer")
    assert [clause.expression for clause in found.clauses] == [
        "1 <= duration <= 30",
        "wer < 0.2",
        'snr > 3 or source == "web"',
    ]
    assert [clause.names for clause in found.clauses] == [("duration",), ("wer",), ("snr", "source")]
    assert parse_filter("wer < 1").clauses == ()
    again = pickle.loads(pickle.dumps(found))  # for loaders in other processes
    index = make_index(rows_of(snr=[1.0, 5.0]))
    assert again.expression == found.expression and again.keep(index).tolist() == found.keep(index).tolist()


def test_a_column_that_a_shard_lacks_is_missing_there_if_the_corpus_has_it() -> None:
    index = make_index(rows_of(wer=[0.1, 0.2]))
    assert parse_filter("dnsmos > 3").keep(index, {"dnsmos"}).tolist() == [False, False]
    assert parse_filter("dnsmos is missing").keep(index, {"dnsmos"}).tolist() == [True, True]
    with pytest.raises(BadInput, match=r"no column dnsmos; there are characters, duration, .*wer"):
        parse_filter("dnsmos > 3").keep(index)


@pytest.mark.parametrize(
    "expression, problem",
    [
        ("", "invalid syntax"),
        ("wer < and", "character 7"),
        ("wer", "a condition is needed"),
        ("wer and snr < 1", "at character 1, 'wer'"),
        ("wer < 'a'", "a name is compared with a number"),
        ("language < 3", "a name is compared with a number"),
        ("language + 'x' == 'enx'", "arithmetic needs numbers"),
        ("wer < 1 and __import__('os').system('true') == 0", "at character 13"),
        ("wer.real < 1", "'wer.real'"),
        ("(lambda: 1)() < 2", "needed"),
        ("[x for x in [1]] == 1", "needed"),
        ("wer ** 9 < 1", "needed"),
        ("wer in 'ab'", "'in' needs one list"),
        ("wer in []", "empty list"),
        ("1 < wer in [2]", "one list"),
        ("wer is 3", "missing"),
        ("1 < wer is missing", "'is'"),
        ("missing < 3", "needed"),
        ("wer < True", "needed"),
        ("wer < 1e999", "needed"),
        ("wer < " + "9" * 400, "needed"),
        ("wer := 3", "invalid"),
        ("f'{wer}' == 'a'", "needed"),
        ("not " * 200 + "wer < 1", "nested"),
        ("-" * 200 + "wer < 1", "nested"),
        ("wer < 1 " + "and wer < 1 " * 1000, "longer"),
        ("wer < \0", "null"),
    ],
)
def test_anything_else_is_refused_in_one_line(expression: str, problem: str) -> None:
    with pytest.raises(BadInput, match="filter") as caught:
        parse_filter(expression)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
