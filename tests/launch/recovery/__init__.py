"""Who is blamed for a failure, and what is done about it."""
