"""How a topology would do, from formulas: memory, time, pipelines."""
