import enum


class Format(enum.Enum):
    E4M3 = 1
    HYBRID = 2


class Recipe:
    def __init__(self, fp8_format, fp8_dpa=False):
        assert not fp8_dpa
        self.fp8_format = fp8_format


class Float8CurrentScaling(Recipe):
    pass


class Float8BlockScaling(Recipe):
    pass


class MXFP8BlockScaling(Recipe):
    pass


class DelayedScaling(Recipe):
    pass
