"""A recipe's stages as chained Slurm jobs: what is submitted, what a job does at its end, and how they are doing."""
