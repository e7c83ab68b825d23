"""Vector quantisation by k-means: features to the number of the nearest centroid."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.shards import replace_atomically
from runtime.exits import BadInput

_CHUNK = 4096  # frames compared with all centroids at a time


@dataclass(frozen=True)
class Quantiser:
    """mean [width]; projection [width, dims], which also scales; centroids [entries, dims]. All float32.

    A frame's code is the centroid nearest (Euclidean) to (frame - mean) @ projection.
    """

    mean: np.ndarray
    projection: np.ndarray
    centroids: np.ndarray

    def assign(self, frames: np.ndarray) -> np.ndarray:
        """int32 [frames]: codes of float32 [frames, width]. The lower code wins a tie."""
        codes = np.empty(len(frames), np.int32)
        half_norms = 0.5 * np.square(self.centroids).sum(1)
        for start in range(0, len(frames), _CHUNK):
            points = (frames[start : start + _CHUNK] - self.mean) @ self.projection
            codes[start : start + _CHUNK] = np.argmin(half_norms - points @ self.centroids.T, axis=1)
        return codes

    def save(self, file: Path) -> str:
        """Write an npz; returns its hash (xxh3-128)."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, mean=self.mean, projection=self.projection, centroids=self.centroids)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(file, content.getvalue())
        return xxhash.xxh3_128_hexdigest(content.getvalue())

    @classmethod
    def load(cls, file: Path) -> Quantiser:
        """Read what `save` wrote. Raises BadInput for a file that is not one."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in ("mean", "projection", "centroids")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{file} is not a codebook: {error}") from error


def train_quantiser(frames: np.ndarray, entries: int, seed: int, dims: int = 128, iterations: int = 12) -> Quantiser:
    """Quantiser learnt from float32 [frames, width], the same for the same frames and seed.

    Dimensions are scaled to unit variance, because a few of an encoder's dimensions are a hundred times larger than
    the rest; then the `dims` strongest principal directions are kept, which takes away noise and most of the cost.
    Centroids start at distinct random frames and take `iterations` of Lloyd's algorithm. Raises BadInput for fewer
    frames than entries.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(frames) < entries:
        raise BadInput(
            f"{len(frames)} frames cannot make {entries} codebook entries: raise corpus.speech_minutes "
            "or lower codec.codebooks.*.size"
        )
    mean, deviation = frames.mean(0), frames.std(0) + 1e-6
    scaled = (frames - mean) / deviation
    with threadpool_limits(1):  # one order of summation, so one result
        _, directions = np.linalg.eigh(scaled.T @ scaled)
        strongest = directions[:, ::-1][:, :dims]
        strongest = strongest * np.sign(strongest[np.abs(strongest).argmax(0), np.arange(strongest.shape[1])])
        points = np.ascontiguousarray(scaled @ strongest)
        found = KMeans(entries, init="random", n_init=1, max_iter=iterations, tol=0, random_state=seed).fit(points)
    return Quantiser(
        mean=mean.astype(np.float32),
        projection=(strongest / deviation[:, None]).astype(np.float32),
        centroids=found.cluster_centers_.astype(np.float32),
    )
