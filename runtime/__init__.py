"""What every room needs to end well: exit codes, the errors that carry them, and stop signals."""
