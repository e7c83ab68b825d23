class CudaRNGStatesTracker:
    pass


def activation_recompute_forward(**_):
    raise AssertionError("nothing is recomputed here")
