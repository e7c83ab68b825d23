"""Prints how unlike the ranks' attention costs of a step are, dealt as lanes deal packs and in random order, and how
much the contents of steps vary."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data_pipeline.batch import Pack
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.lanes import Lane
from data_pipeline.mixture import open_mixture
from tests.data_pipeline.synthetic import make_config, make_corpus

LANES, STEPS, LENGTH, WINDOW = 64, 24, 1024, 16
WEIGHTS = {"asr": 1.0, "continuation": 1.0, "text": 2.0}


class RandomLane(Lane):
    """Hands the packs of a window out in random order."""

    def _balanced(self, packs: list[Pack]) -> list[Pack]:
        return [packs[i] for i in np.random.default_rng([self.number, self._turn]).permutation(len(packs))]


def measure(kind: type[Lane], corpus: Corpus, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Cost of each pack [steps, batch], and seconds of speech in each step [steps]."""
    mixture = open_mixture(make_config(WEIGHTS), corpus, "train", DamageTally(0.0))
    lanes = [kind(number, LANES, mixture, length=LENGTH, window=WINDOW, batch=batch) for number in range(LANES)]
    packs = [lanes[number % LANES].next_pack() for number in range(STEPS * batch)]
    costs = np.array([sum(length**2 for length in pack.lengths) for pack in packs if pack], float)
    speech = np.array([pack.audio_seconds for pack in packs if pack])
    return costs.reshape(STEPS, batch), speech.reshape(STEPS, batch).sum(1)


def main() -> None:
    print(f"{LANES} lanes, packs of {LENGTH} tokens; cost is the sum of squared sample lengths; means of {STEPS} steps")
    print("| packs a step | ranks | packs a rank | dearest rank / mean, random order | as dealt |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.open(make_corpus(Path(name) / "corpus", train_documents=400))
        for batch in (64, 256):
            found = {kind: measure(kind, corpus, batch) for kind in (RandomLane, Lane)}
            for world in (4, 8, 16, 32, 64):
                shares = []
                for costs, _ in found.values():
                    ranks = costs.reshape(STEPS, batch // world, world).sum(1)
                    shares.append((ranks.max(1) / ranks.mean(1)).mean())
                print(f"| {batch} | {world} | {batch // world} | {shares[0]:.2f} | {shares[1]:.2f} |", flush=True)
            spread = [speech.std() / speech.mean() for _, speech in found.values()]
            print(
                f"speech in a step of {batch}, deviation / mean: random order {spread[0]:.3f}, as dealt {spread[1]:.3f}"
            )


if __name__ == "__main__":
    main()
