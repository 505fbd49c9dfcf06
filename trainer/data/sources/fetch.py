"""Fetches a model from the first of several sources that has the pinned content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from trainer.data.sources import cache, hub, layout
from trainer.data.sources.types import ModelSource
from trainer.data.sources.unavailable import Unavailable
from trainer.errors import ConfigError
from trainer.hashing import check_sha256, sha256, stamp

log = logging.getLogger(__name__)


@runtime_checkable
class _KnowsNames(Protocol):
    def names(self) -> list[str]: ...


@runtime_checkable
class _KeepsCopies(Protocol):
    def discard(self) -> None: ...


def fetch_model(sources: Sequence[ModelSource], files: Mapping[str, str]) -> Path:
    """Returns a local folder with the model, from the first source that has the pinned content.

    `files` maps file names to the sha256 of their content, so no source has to be trusted: a source with any other
    content is rejected, its copy is dropped, and the next source is tried. The cache notes which files were checked, so
    a large file is hashed once per copy and not at every start; a file that was touched since is hashed again.

    Raises `ConfigError`, one line that names every source and its fault.
    """
    _check(sources, files)
    note = _note(sources, files)
    noted = _read_note(note, files)
    if noted is not None:
        return noted
    reasons = []
    for source in sources:
        try:
            folder = source.fetch()
            reason = mismatch(folder, files)
        except ConfigError as error:
            if len(sources) == 1:
                raise
            reasons.append(f"{error.what}: {error.reason}" if isinstance(error, Unavailable) else str(error))
            continue
        if reason is None:
            if files:
                stamps = {name: stamp(folder / name) for name in files}
                cache.write(note, json.dumps({"folder": str(folder), "stamps": stamps}))
            return folder
        if isinstance(source, _KeepsCopies):
            source.discard()
        reasons.append(f"{source}: {reason}")
        log.warning("%s is rejected: %s", source, reason)
    if len(reasons) == 1:
        listing = reasons[0]
    else:
        numbered = " | ".join(f"({number}) {reason}" for number, reason in enumerate(reasons, 1))
        listing = f"none of {len(reasons)} provides the model: {numbered}"
    raise Unavailable("model.sources", listing, "model=folder model.path=<folder>, model=hub model.id=<id>")


def model_identity(
    sources: Sequence[ModelSource], files: Mapping[str, str], stated: Sequence[str] = ()
) -> dict[str, str]:
    """Returns what a run's hash must include of the model's content: nothing if `files` pins what the model computes.

    It computes by its config, its weights, and a tokenizer or processor. Of a source that knows the names of its files
    (a folder, a package) all these are pinned.
    stated: the values of the model's settings, which the hash includes anyway. A pinned repository of the Hub whose
    name or commit is not among them is included.

    Raises `ConfigError` if there are several sources and `files` pins only a part, because it is not known which of
    them provides the rest.
    """
    _check(sources, files)
    first = sources[0]
    missing = layout.unpinned(files)
    if missing and len(sources) > 1:
        raise ConfigError(
            f"model.files: {', '.join(files)} with {len(sources)} sources; allowed: also a sha256 of {missing},"
            " because the sources may differ in it"
        )
    if not missing and not (isinstance(first, _KnowsNames) and set(first.names()) - set(files)):
        return {}
    if content := first.identity():
        return content
    reference = hub.reference(sources[:1])
    if reference is None or set(reference) <= set(stated):
        return {}
    return dict(zip(("repo", "commit"), reference, strict=True))


def mismatch(folder: Path, files: Mapping[str, str]) -> str | None:
    """Describes the first of `files` that is missing in `folder` or has other content; None if all are right."""
    for name, expected in files.items():
        try:
            actual = sha256(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror or error}"
        if actual != expected:
            return f"{name}: wrong sha256: expected {expected}, found {actual}"
    return None


def _check(sources: Sequence[ModelSource], files: Mapping[str, str]) -> None:
    if not sources:
        raise ConfigError("model.sources: empty; allowed: one or more sources")
    if len(sources) > 1 and not files:
        raise ConfigError(
            f"model.files: empty with {len(sources)} sources; allowed: file name: sha256, because only"
            " the content shows that all of them have the same model"
        )
    for name, expected in files.items():
        if Path(name).name != name:
            raise ConfigError(f"model.files: {name!r}; allowed: file names without a folder")
        check_sha256(expected, f"model.files.{name}")


def _note(sources: Sequence[ModelSource], files: Mapping[str, str]) -> str:
    """Returns the cache's file that notes which folder was checked for these sources and hashes."""
    listing = json.dumps([[repr(source) for source in sources], dict(files)], sort_keys=True)
    return f"checked/{hashlib.sha256(listing.encode()).hexdigest()[:32]}.json"


def _read_note(note: str, files: Mapping[str, str]) -> Path | None:
    """Returns the folder that was checked before if none of its files has been touched since."""
    if not files:
        return None
    try:
        content = json.loads((cache.root() / note).read_text(encoding="utf-8"))
        folder = Path(content["folder"])
        if all(list(stamp(folder / name)) == content["stamps"][name] for name in files):
            return folder
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never checked, or moved since: the sources are asked again
    return None
