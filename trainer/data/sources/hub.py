"""Fetches models and folders of data sets from the Hugging Face Hub.

A copy in the Hub's own cache works offline. One short request precedes every download, so that an unreachable Hub fails
within seconds and not after retries. With `HF_HUB_OFFLINE=1` no request is made.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources import layout
from trainer.data.sources.unavailable import Unavailable
from trainer.errors import ConfigError

log = logging.getLogger(__name__)
_downloaded: set[Path] = set()  # snapshots that this process added to the Hub's cache
PATIENCE = 8.0  # seconds for the first request; includes the DNS look-up, which a socket's timeout doesn't cover


@dataclass(frozen=True)
class Repository:
    """One revision of one repository: `kind` is "model" or "dataset"."""

    name: str
    revision: str
    kind: str
    alternatives: str  # settings that need no Hub, for error messages

    def __str__(self) -> str:
        return f"Hub {self.name}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes, and not a branch or tag."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def snapshot(
        self, known: str, wanted: Callable[[Iterable[str]], list[str]], problem: Callable[[Path], str | None]
    ) -> Path:
        """Returns the folder of this revision in the Hub's cache, with the wanted files.

        `known`: the file that locates a cached copy. `wanted`: selects from the file names of the repository.
        `problem`: describes what a local copy lacks, or returns None. Raises `ConfigError`.
        """
        from huggingface_hub import constants, snapshot_download

        cached = self.cached(known)
        usable = cached is not None and problem(cached) is None
        if cached is not None and usable and (self.pinned or constants.HF_HUB_OFFLINE):
            return cached
        if constants.HF_HUB_OFFLINE:
            reason = f" ({problem(cached)})" if cached is not None else ""
            raise self._unavailable(f"HF_HUB_OFFLINE is set and its cache lacks it{reason}")
        try:
            names = within(PATIENCE, self._names)
        except Exception as error:  # httpx, httpx2, requests or OSError, depending on the client's version
            if cached is not None and usable and not _refused(error):
                log.warning("%s could not be asked for a newer copy (%s); the cached one is used", self, _short(error))
                return cached
            raise self._unavailable(_explained(error)) from error
        files = wanted(names)
        if not files:
            listing = ", ".join(sorted(names)[:12])
            raise self._unavailable(f"has none of the files needed (found: {listing})")
        log.info("fetching %s from the Hub …", self.name)
        try:
            folder = Path(
                snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=self.revision,
                    allow_patterns=files,
                    etag_timeout=PATIENCE,
                )
            )
        except Exception as error:  # as above
            raise self._unavailable(_explained(error)) from error
        _downloaded.add(folder)
        lack = problem(folder)
        if lack is not None:
            raise self._unavailable(lack)
        return folder

    def cached(self, known: str) -> Path | None:
        """Returns the folder of this revision in the Hub's cache, or None if the file `known` is not cached."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(self.name, known, revision=self.revision, repo_type=self.kind)
        except HFValidationError:
            raise self._unavailable(f"{self.name!r} is not a Hub id; allowed: name or owner/name") from None
        if not isinstance(path, str):
            return None
        return Path(path).parents[known.count("/")]

    def _unavailable(self, reason: str) -> Unavailable:
        return Unavailable(str(self), reason, self.alternatives)

    def _names(self) -> list[str]:
        from huggingface_hub import HfApi

        info: Any = HfApi().repo_info(self.name, repo_type=self.kind, revision=self.revision, timeout=PATIENCE)
        return [file.rfilename for file in info.siblings or []]


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub, by id and revision; transformers must have a class for its architecture and the task."""

    repo: str
    revision: str = "main"

    def __post_init__(self) -> None:
        if self.repo == "???":
            raise ConfigError("model.id: not given; allowed: an id of the Hub, like FacebookAI/roberta-base")

    def __str__(self) -> str:
        return str(self._repository)

    @property
    def _repository(self) -> Repository:
        return Repository(self.repo, self.revision, "model", "model=minilm, model=folder model.path=<folder>")

    def fetch(self) -> Path:
        """Returns the model's folder in the Hub's cache. Raises `ConfigError`."""
        return self._repository.snapshot("config.json", layout.needed, layout.problem)

    def identity(self) -> dict[str, str]:
        """The commit that a branch or tag stands for now; nothing for a commit, which the config has."""
        return {} if self._repository.pinned else {"commit": self.fetch().name}

    def discard(self) -> None:
        """Drops this revision from the Hub's cache if this process added it.

        An earlier copy belongs to the user's other work: it is not used and not removed.
        """
        from huggingface_hub import scan_cache_dir

        folder = self._repository.cached("config.json")
        if folder in _downloaded:
            scan_cache_dir().delete_revisions(folder.name).execute()


def reference(sources: Iterable[object]) -> tuple[str, str] | None:
    """Returns id and revision of the first source that is on the Hub; None if none is."""
    return next(((source.repo, source.revision) for source in sources if isinstance(source, HubModel)), None)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns or raises what `call` does. Raises `TimeoutError` if it takes longer, and abandons its thread."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, call()))
        except BaseException as error:  # raised again in the caller's thread
            outcome.extend((False, error))

    thread = threading.Thread(target=run, daemon=True)  # a stuck DNS look-up must not keep the process alive
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    done, result = outcome
    if done:
        return result
    raise result


def _refused(error: Exception) -> bool:
    """Whether the Hub answered and refused the request."""
    from huggingface_hub.errors import HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", 500)
    return isinstance(error, HfHubHTTPError) and status < 500


def _explained(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the model is gated: ask for access on its page of the Hub and log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the Hub has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the Hub has no such repository, or it is private and you are not logged in (hf auth login)"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub refused ({_short(error)})"
    return f"the Hub can't be reached ({_short(error)})"


def _short(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
