"""Which spoken words stand for which written words.

A phonemiser runs small words together ("in the" becomes one), and says some written words as several
("Beth-lehem"). Both are found by aligning its output with each written word's own phonemes.
"""

from __future__ import annotations

from collections.abc import Sequence

# A step takes so many written and so many spoken words: one, merged ones, or one said as several.
_STEPS = ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions from `a` to `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def align_words(written: Sequence[str], spoken: Sequence[str]) -> list[tuple[int, int, int, int]] | None:
    """Cheapest division of both into steps: (written start, written end, spoken start, spoken end).

    `written` holds the phonemes of each written word said alone, `spoken` the phonemes between pauses of the
    whole. Cost is the edit distance of what a step joins. None where no division exists, or where some step
    differs in more than half of its phonemes, so that its times could not be trusted.
    """
    n, m = len(written), len(spoken)
    best: dict[tuple[int, int], tuple[int, tuple[int, int] | None]] = {(0, 0): (0, None)}
    for i in range(n + 1):
        for j in range(max(0, i // 4 - 1), min(m, 3 * i + 3) + 1):
            if (i, j) not in best:
                continue
            cost = best[i, j][0]
            for di, dj in _STEPS:
                if i + di > n or j + dj > m:
                    continue
                left, right = "".join(written[i : i + di]), "".join(spoken[j : j + dj])
                if (di, dj) != (1, 1) and abs(len(left) - len(right)) > 3:
                    continue
                total = cost + edit_distance(left, right)
                if (i + di, j + dj) not in best or total < best[i + di, j + dj][0]:
                    best[i + di, j + dj] = (total, (i, j))
    if (n, m) not in best:
        return None
    steps: list[tuple[int, int, int, int]] = []
    at = (n, m)
    while (came := best[at][1]) is not None:
        steps.append((came[0], at[0], came[1], at[1]))
        at = came
    for i, i_end, j, j_end in steps:
        left, right = "".join(written[i:i_end]), "".join(spoken[j:j_end])
        if 2 * edit_distance(left, right) > max(len(left), len(right), 2) + 2:
            return None
    return steps[::-1]


def divide(total: int, weights: Sequence[int]) -> list[int]:
    """Cut points 0 = c0 <= ... <= cn = `total`, in proportion to `weights`, rounded."""
    whole, done, cuts = max(sum(weights), 1), 0, [0]
    for weight in weights:
        done += weight
        cuts.append(round(total * done / whole))
    cuts[-1] = total
    return cuts
