"""The command line and what starts processes."""
