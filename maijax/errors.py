"""The errors that a person, not a programmer, can mend."""


class UserError(ValueError):
    """Bad input, told in one line that names the thing, the value and the fix; the command line exits 2."""


class DataError(UserError):
    """Data that cannot be read as they are: of a sweep's trials, no other value would mend it."""


class RunError(RuntimeError):
    """A run that started well and failed, told in one line; the command line exits 1."""
