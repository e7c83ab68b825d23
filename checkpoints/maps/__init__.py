"""Which tensors of a published architecture make which native tensor: one file an architecture, data more than code."""
