"""Ranks of any topology, built on one machine: fake process groups, tensors without data, training's own code."""
