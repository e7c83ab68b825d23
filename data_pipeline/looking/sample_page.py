"""One page for one sample: picture, player, words, codes, and what a layout makes of its document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.corpus import Corpus
from data_pipeline.looking.inspect import Found
from data_pipeline.looking.laid import Laid, short_names
from data_pipeline.looking.pages import colours_of, environment
from data_pipeline.looking.samples import Gallery, show
from data_pipeline.shards import DamagedSample, replace_atomically
from runtime.exits import BadInput


def write_sample_page(path: Path, found: Found, corpus: Corpus, layout: str, laid: Sequence[Laid]) -> None:
    """Write the page to `path`; it needs no network and no other file. `layout`: what made `laid`, or empty."""
    try:
        shown = show(found.utterance, found.audio, corpus.vocabulary)
    except DamagedSample as damaged:
        raise BadInput(f"the sound of {damaged.where} cannot be decoded") from damaged
    page = (
        environment()
        .get_template("sample.html")
        .render(
            corpus=corpus,
            shown=shown,
            where=f"{found.shard.relative_to(corpus.folder)}, sample {found.ordinal}",
            layout=layout,
            laid=laid,
            short=short_names(corpus.vocabulary),
            colours=colours_of([book.name for book in corpus.vocabulary.codebooks]),
            strip_data=Gallery([shown]).strip_data(),
        )
    )
    replace_atomically(path, page.encode())
