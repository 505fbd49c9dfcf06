"""The error that a command shows in one line."""


class AnalysisError(Exception):
    """The command can't do what was asked; its text is one line, shown without a traceback."""
