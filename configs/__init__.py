"""Typed configuration: the schema, the Hydra groups beside it, and how they are composed."""
