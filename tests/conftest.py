"""For all tests: properties are given as many examples, however slow the machine is just now."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
