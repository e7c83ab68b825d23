"""Models that turn codes into sound: what the speech decoder is made of."""
