"""What a run measures about itself: where a step's time goes, memory, norms by group, profiler windows."""
