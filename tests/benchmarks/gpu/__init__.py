"""Speed on one GPU, in one command: `make bench-gpu`, or `python -m tests.benchmarks.gpu --help`."""
