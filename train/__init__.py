"""Models, objectives, engines and the training loop."""
