"""What a launcher does about a failure: finds out who failed and why, writes it down, tells, and starts again."""
