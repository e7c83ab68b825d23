"""`megaphone logs`: what all ranks of a run have said, in the order of time."""
