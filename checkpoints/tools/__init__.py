"""What is done with checkpoints between runs: compared, averaged, taken apart, laid out anew."""
