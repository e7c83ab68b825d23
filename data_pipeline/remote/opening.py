"""Opening a corpus by its URL."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import xxhash

from configs.schema import Config
from data_pipeline.cache import cache_root
from data_pipeline.codecs.whisper_kmeans import codebook_file
from data_pipeline.corpus import MANIFEST_FILE
from data_pipeline.remote.files import RemoteFolder
from data_pipeline.remote.mirror import ORIGIN_FILE, Mirror, mirror_at
from data_pipeline.shards import replace_atomically
from data_pipeline.sources.address import is_url
from data_pipeline.vocabulary import TOKENIZER_FILE, VOCABULARY_FILE
from runtime.exits import BadInput


def corpus_at(where: str, config: Config) -> Path:
    """The folder of the corpus at `where`: that folder, or for a URL one in the cache that stands for it."""
    if not is_url(where):
        return Path(where)
    return open_mirror(where, cache_root(config) / "remote", int(config.run.remote_shards_gb * 1e9))


@lru_cache(64)
def open_mirror(url: str, root: Path, most_bytes: int) -> Path:
    """The folder under `root` that stands for the corpus at `url`; one for each state of its manifest.

    Asked of the storage once a process. Raises BadInput where there is no corpus, or no way to read it.
    """
    url = url.rstrip("/")
    try:
        manifest = RemoteFolder(url, reached=_was_reached(url, root)).read(MANIFEST_FILE)
        books = [str(book["name"]) for book in json.loads(manifest)["vocabulary"]["codebooks"]]
        name = json.loads(manifest)["name"]
    except FileNotFoundError as error:
        raise BadInput(f"{url} has no {MANIFEST_FILE}: it is not a corpus, or unfinished") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{url}/{MANIFEST_FILE} is damaged ({error!r})") from error
    key = xxhash.xxh3_128_hexdigest(url.encode() + b"\0" + manifest)
    folder = root / f"{''.join(letter if letter.isalnum() else '_' for letter in str(name))[:40]}-{key}"
    mirror = Mirror(folder, url, most_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for file in (VOCABULARY_FILE, TOKENIZER_FILE):
            mirror.small_file(folder / file)
    except FileNotFoundError as error:
        raise BadInput(f"{url} has no {file}: it is not a whole corpus") from error
    for book in books:
        mirror.if_there(codebook_file(folder, book))
    replace_atomically(folder / ORIGIN_FILE, json.dumps({"url": url, "most_bytes": most_bytes}).encode())
    replace_atomically(folder / MANIFEST_FILE, manifest)
    return folder


def _was_reached(url: str, root: Path) -> bool:
    """Whether a process of this machine has read the corpus before, in one state or another."""
    mirrors = (mirror_at(file.parent) for file in root.glob(f"*/{ORIGIN_FILE}"))
    return any(mirror is not None and mirror.url == url for mirror in mirrors)
