"""The error of a source that can't give what it is asked for."""

from __future__ import annotations

from trainer.errors import ConfigError


class Unavailable(ConfigError):
    """`what` couldn't be had, for this `reason`; `alternatives` are settings that do without it."""

    def __init__(self, what: str, reason: str, alternatives: str) -> None:
        super().__init__(what, reason, alternatives)  # all three, so that it survives pickling
        self.what, self.reason, self.alternatives = what, reason, alternatives

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}; instead: {self.alternatives}"
