"""Text sources: nothing lost, nothing left that no reader would say."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import CorpusConfig
from data_pipeline.plan import CHARACTERS_PER_SECOND, plan_shards
from data_pipeline.sources import Document, find_source
from data_pipeline.sources.sentences import pieces_of
from data_pipeline.sources.text.world_english_bible import clean_verse
from runtime.exits import BadInput

PROSE = st.text(st.sampled_from("abcde    ,;:.!?'\")"), max_size=600)


@given(PROSE)
def test_pieces_lose_nothing_and_stay_short(text: str) -> None:
    pieces = pieces_of(text, shortest=20, longest=60)
    assert " ".join(pieces) == " ".join(text.split())
    for piece in pieces:
        assert piece.strip() == piece != ""
        assert len(piece) <= 60 or " " not in piece


def test_pieces_end_where_sentences_end() -> None:
    text = 'He said, "Go." They went. ' + "It was a long way, and the road was bad; they were tired. " * 3
    assert pieces_of(text, shortest=20, longest=60)[0] == 'He said, "Go." They went.'


def test_bible_is_whole_and_clean() -> None:
    documents = find_source("world_english_bible").documents()
    assert len(documents) == 1189
    assert documents[0].pieces[0].startswith("In the beginning God created the heavens and the earth.")
    everything = "\n".join(piece for document in documents for piece in document.pieces)
    assert not re.search(r"[^A-Za-z ,;:.!?'\"()\n-]", everything)
    assert "Psalm" not in everything.replace("Psalms", "")
    assert len({document.key for document in documents}) == len(documents)
    assert all(re.fullmatch(r"[a-z0-9-]+", document.key) for document in documents)


def test_verse_without_titles_and_brackets() -> None:
    assert clean_verse(" His name`s   sake [of] old.      Psalm 24  A Psalm by David.") == "His name's sake of old."
    assert clean_verse("Don`t utterly forsake me.  BEIT") == "Don't utterly forsake me."
    assert clean_verse("amen.     BOOK II      Psalm 42  For the sons of Korah.") == "amen."


def test_unknown_source_names_the_choices() -> None:
    with pytest.raises(BadInput, match="world_english_bible"):
        find_source("library_of_babel")


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.5, 20), st.floats(0.3, 5), st.floats(0, 0.5))
def test_plan_uses_a_document_once_and_reaches_its_sizes(
    seed: int, minutes: float, shard_minutes: float, share: float
) -> None:
    documents = [Document(f"d-{i}", tuple(f"{i} {k} " + "x" * 90 for k in range(1 + i % 40))) for i in range(60)]
    corpus = CorpusConfig(
        name="x",
        speech_minutes=minutes,
        shard_minutes=shard_minutes,
        validation_share=share,
        text_characters=20_000,
        seed=seed,
    )
    shards = plan_shards(corpus, documents)
    assert shards == plan_shards(corpus, documents)
    used = [piece for shard in shards for document in shard.documents for piece in document.pieces]
    assert len(used) == len(set(used))
    origins: dict[str, set[tuple[bool, str]]] = {}
    for shard in shards:
        for document in shard.documents:
            origins.setdefault(document.key.split("-part")[0], set()).add((shard.spoken, shard.split))
    assert all(len(purposes) == 1 for purposes in origins.values())
    keys = [document.key for shard in shards for document in shard.documents]
    assert len(keys) == len(set(keys))
    spoken = sum(len(p) for s in shards if s.spoken for d in s.documents for p in d.pieces)
    wanted = minutes * 60 * CHARACTERS_PER_SECOND
    assert wanted <= spoken + 1e-6 and spoken <= wanted + 2 * 100
    assert all(s.pieces for s in shards)
