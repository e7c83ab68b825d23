"""Figures, their ranges, and the rule that matches answers: worked examples."""

import math

import numpy as np
import pytest

from train.evaluation.figures import Figure, mean, perplexity, share
from train.evaluation.judges import error_figures, errors_of, listened
from train.evaluation.matching import matches


def test_a_rate_is_over_all_items_and_its_range_holds_it() -> None:
    """Errors 0 or 1 of one word each: the bootstrap's range is that of a binomial share."""
    errors = [float(number % 5 == 0) for number in range(400)]
    figure = share(errors, [1.0] * 400)
    assert figure.value == 20.0 and figure.low is not None and figure.high is not None
    spread = 100 * 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert figure.low == pytest.approx(20 - spread, abs=0.6) and figure.high == pytest.approx(20 + spread, abs=0.6)
    assert share([1, 0], [4, 1]).value == 20.0
    assert share([1.0], [2.0]) == Figure(50.0, "%")  # of one item no range can be said


def test_perplexity_is_of_a_token_and_means_are_plain() -> None:
    nats = np.log([2.0, 8.0])
    assert perplexity(nats, [1, 1]).value == pytest.approx(4.0)
    assert perplexity([3 * math.log(5)], [3]).value == pytest.approx(5.0)
    assert mean([3.0, 4.0], "1 to 5").value == 3.5


def test_errors_of_transcripts_by_language() -> None:
    english = errors_of("Colour one, please", "colour 1 please", "en-GB")
    assert (english["word_errors"], english["words"]) == (0, 3)
    chinese = errors_of("今天天气", "今天气", "zh")
    assert "words" not in chinese and (chinese["character_errors"], chinese["characters"]) == (1, 4)
    assert errors_of("...", "x", "en") == {"heard": "x"}
    figures = error_figures([english, chinese])
    assert figures["wer"].value == 0 and figures["cer"].value == pytest.approx(100 / (english["characters"] + 4))
    told = listened([{"dnsmos_ovrl": 3.0}, {"dnsmos_ovrl": 4.0, "similarity": 0.5}])
    assert told["dnsmos_ovrl"].value == 3.5 and told["similarity"].value == 0.5 and "wer" not in told


@pytest.mark.parametrize(
    "reply, answers, language, right",
    [
        ("The capital of France is Paris.", ["Paris"], "en", True),
        ("I'd say it's Sunset Blvd, of 1950.", ["Sunset Boulevard", "sunset blvd"], "en", True),  # an alias
        ("Comparison is hard.", ["Paris"], "en", False),  # whole words only
        ("There are twenty-one of them.", ["21"], "en", True),  # numbers are digits
        ("It was the Beatles!", ["Beatles, The"], "en", True),  # articles are dropped wherever they stand
        ("It was Beatles", ["The Beatles"], "en", True),  # without articles
        ("New York City", ["new york"], "en", True),
        ("York, the new one", ["New York"], "en", False),
        ("Lima or Quito", ["Quito"], "en", True),  # one of several named: right by this rule
        ("anything", ["...", "the"], "en", False),  # nothing is left of these answers
        ("中国的首都是北京。", ["北京"], "zh", True),
        ("是上海", ["北京"], "zh", False),
        ("", ["Paris"], "en", False),
    ],
)
def test_answers_are_matched_by_rule(reply: str, answers: list[str], language: str, right: bool) -> None:
    assert matches(reply, answers, language) is right
