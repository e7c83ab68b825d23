"""Audio and text in, packed batches out."""
