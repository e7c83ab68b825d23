"""Building corpora: `build_corpus` does all of one, `build_share` a task's part, `merge_corpus` ends what tasks did.

How it is done is in data_pipeline/building.
"""

from data_pipeline.building.folder import cache_root, codec_of, corpus_folder, corpus_identity, learns_codebooks
from data_pipeline.building.job import build_corpus, build_share, merge_corpus
from data_pipeline.building.share import share_of
from data_pipeline.building.tasks import STAGING
from runtime.share import Share

__all__ = [
    "STAGING",
    "Share",
    "build_corpus",
    "build_share",
    "cache_root",
    "codec_of",
    "corpus_folder",
    "corpus_identity",
    "learns_codebooks",
    "merge_corpus",
    "share_of",
]
