"""One file from the Python package index, by the user's own pip, in hash-checking mode.

pip knows the user's mirrors, proxies and certificates, so it does the fetching. Nothing is
installed, imported or run.
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

    `source` asks for the source distribution, else for a wheel. Raises `Unavailable`, with
    the `alternatives`, where the index can't be reached or the content isn't the pinned one;
    a file with a wrong hash is not kept.
    """
    what = f"package {name}=={version}"
    log.info("fetching %s %s …", name, version)
    with tempfile.TemporaryDirectory(prefix=".pip.", dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
        into = Path(scratch, "files")
        # -P: a file named pip.py in the current folder is not what we want to run
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
        # pip has checked this; a pip.conf that switches the checks off must not get past us
        if sha256(files[0]) != digest:
            found = sha256(files[0])
            raise Unavailable(what, _wrong_hash(digest, found), alternatives)
        return files[0].replace(folder / files[0].name)


def _reason(output: str, digest: str) -> str:
    """What pip says, in a few words."""
    if "No module named pip" in output:
        return "pip is not installed in this Python (python -m ensurepip)"
    found = re.search(r"\bGot\s+([0-9a-f]{64})", output)
    if found:
        return _wrong_hash(digest, found[1])
    errors = re.findall(r"^ERROR: (.+)", output, flags=re.MULTILINE)
    said = errors[-1] if errors else (output.strip().splitlines() or ["nothing"])[-1]
    said = said.replace(" (from -r ", " (").strip()
    if re.search(r"Retrying|ConnectionError|Could not fetch URL|timed out|Max retries", output):
        return "the package index can't be reached"
    return f"the package index doesn't give it (pip: {said})"


def _wrong_hash(expected: str, found: str) -> str:
    return f"wrong sha256: expected {expected}, found {found}; not used and not kept"
