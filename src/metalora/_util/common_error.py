"""The error of several processes at once; apart from what needs torch, so that the command line starts without it."""


class CommonError(ValueError):
    """An error that all processes raise at once, so that it is enough if the first one shows it."""
