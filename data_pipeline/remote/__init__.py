"""Corpora behind a URL: a folder of the cache stands for one, and holds what was read of it last."""
