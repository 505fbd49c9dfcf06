"""The error that a command shows as one line."""


class AnalysisError(Exception):
    """The command can't do what was asked. Its message is one line, shown without a traceback."""
