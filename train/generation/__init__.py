"""What a trained model says: continuations of prompts that layouts make, by exported models."""
