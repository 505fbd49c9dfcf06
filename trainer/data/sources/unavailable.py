"""The error of a source that can't provide its content."""

from __future__ import annotations

from trainer.errors import ConfigError


class Unavailable(ConfigError):
    """`what` is unavailable for this `reason`; `alternatives` are settings that don't need it."""

    def __init__(self, what: str, reason: str, alternatives: str) -> None:
        super().__init__(what, reason, alternatives)  # all three, so that the error can be pickled
        self.what, self.reason, self.alternatives = what, reason, alternatives

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}; instead: {self.alternatives}"
