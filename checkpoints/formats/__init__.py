"""Reading and writing of parameters on disk: one file a format."""
