"""What turns a model and batches into training steps: one engine a file, behind one protocol."""
