"""A real Slurm on this machine, and runs under it."""
