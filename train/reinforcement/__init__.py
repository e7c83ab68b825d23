"""Learning from a model's own answers: it is asked, its answers are judged, and become the data of the next steps."""
