"""What a topology will cost before a cluster is asked for it."""
