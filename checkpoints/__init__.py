"""Save, load, convert and verify: names, shapes and files, never modules."""
