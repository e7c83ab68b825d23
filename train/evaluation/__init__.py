"""What a trained model can do: one module a measurement, each of the same form (`measurement.py`)."""
