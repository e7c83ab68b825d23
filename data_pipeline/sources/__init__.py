"""Where text and speech come from: `text` and `speech` are the registries of their kinds."""

from data_pipeline.sources.document import Document
from data_pipeline.sources.text import SOURCES, Source, find_source

__all__ = ["SOURCES", "Document", "Source", "find_source"]
