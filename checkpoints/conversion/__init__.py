"""Conversion of checkpoints between formats: planned first, tensor by tensor, by many processes, resumable."""
