"""The fault campaign: a run that is killed, hung, poisoned and starved of disk has the curve of one that is not."""
