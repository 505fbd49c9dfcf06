"""The Hugging Face Hub: any model id, and folders of data sets.

What is in the Hub's own cache already works without the Hub. A Hub that can't be reached
fails within seconds, not after retries: it is asked one short question before anything is
downloaded. `HF_HUB_OFFLINE=1` asks it nothing at all.
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
_downloaded: set[Path] = set()  # snapshots that this process put into the Hub's cache
PATIENCE = 8.0  # seconds for the question; name look-ups count, which a socket's timeout doesn't cover


@dataclass(frozen=True)
class Repository:
    """One revision of one repository: `kind` is "model" or "dataset"."""

    name: str
    revision: str
    kind: str
    alternatives: str  # what a user without the Hub can do, for error messages

    def __str__(self) -> str:
        return f"Hub {self.name}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes, rather than a branch or tag."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def snapshot(
        self, known: str, wanted: Callable[[Iterable[str]], list[str]], problem: Callable[[Path], str | None]
    ) -> Path:
        """The folder of this revision in the Hub's cache, with the wanted files in it.

        `known`: a file by which a cached copy is found; `wanted`: picks from the names in the
        repository; `problem`: what a local copy lacks, None if nothing. Raises `ConfigError`.
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
        except Exception as error:  # httpx, httpx2, requests or OSError, by the version of the client
            if cached is not None and usable and not _refused(error):
                log.warning("%s can't be asked for a newer copy (%s); using the cached one", self, _short(error))
                return cached
            raise self._unavailable(_explained(error)) from error
        files = wanted(names)
        if not files:
            listing = ", ".join(sorted(names)[:12])
            raise self._unavailable(f"has none of the files needed (there is: {listing})")
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
        """The folder of this revision in the Hub's cache, if the file `known` is there."""
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
    """Any model of the Hub that transformers has a class for the task of, by id and revision."""

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
        """The model's folder in the Hub's cache. Raises `ConfigError`."""
        return self._repository.snapshot("config.json", layout.needed, layout.problem)

    def identity(self) -> dict[str, str]:
        """The commit that a branch or tag stands for now; nothing for a commit, which the config has."""
        return {} if self._repository.pinned else {"commit": self.fetch().name}

    def discard(self) -> None:
        """Drops this revision from the Hub's cache if this process put it there.

        A copy that was there before belongs to the user's other work: it isn't used, but stays.
        """
        from huggingface_hub import scan_cache_dir

        folder = self._repository.cached("config.json")
        if folder in _downloaded:
            scan_cache_dir().delete_revisions(folder.name).execute()


def reference(sources: Iterable[object]) -> tuple[str, str] | None:
    """Id and revision under which the Hub has the model that `sources` give; None where none of them is the Hub."""
    return next(((source.repo, source.revision) for source in sources if isinstance(source, HubModel)), None)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; `TimeoutError` if it takes longer (it is left to itself then)."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, call()))
        except BaseException as error:  # handed to the caller's thread
            outcome.extend((False, error))

    thread = threading.Thread(target=run, daemon=True)  # a stuck name look-up must not keep the process
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    done, result = outcome
    if done:
        return result
    raise result


def _refused(error: Exception) -> bool:
    """Whether the Hub did answer, and said no."""
    from huggingface_hub.errors import HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", 500)
    return isinstance(error, HfHubHTTPError) and status < 500


def _explained(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the Hub wants you to ask for access on its page and to log in (hf auth login)"
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
