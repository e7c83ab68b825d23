"""What is measured of an utterance, kept as columns of the shards, and what filters do with it."""
