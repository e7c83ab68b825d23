import contextlib

AUTOCAST = []  # recipes of the contexts that the code is in


@contextlib.contextmanager
def fp8_autocast(enabled, fp8_recipe, fp8_group=None):
    AUTOCAST.append(fp8_recipe if enabled else None)
    try:
        yield
    finally:
        AUTOCAST.pop()


def fp8_model_init(enabled):
    raise AssertionError("parameters stay in bf16")


class FP8GlobalStateManager:
    @staticmethod
    def is_fp8_enabled():
        return bool(AUTOCAST)

    @staticmethod
    def get_fp8_recipe():
        return AUTOCAST[-1] if AUTOCAST else None
