"""Heads: what is predicted from the trunk's hidden states, each returning named loss terms."""
