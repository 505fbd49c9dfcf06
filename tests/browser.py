"""A headless Chromium for the tests of pages: Debian's package, one browser at a time in each test process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser")
_SECONDS = 300  # that an installation may take


class NoChromium(Exception):
    """Why there is no browser."""


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser's executable; installed where it is missing, the test skipped where it can't be."""
    try:
        return find() or install()
    except NoChromium as reason:
        pytest.skip(f"no Chromium: {reason}")


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """A browser without a window, closed after each module: no other event loop can run beside its own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path)
        yield browser
        browser.close()


def watch(page: Page) -> list[str]:
    """A list to which everything is added that goes wrong on a page from now on.

    That is: errors and warnings on the console, exceptions that no script catches, requests that fail.
    """
    trouble: list[str] = []
    page.on("console", lambda said: said.type in ("error", "warning") and trouble.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: trouble.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: trouble.append(f"request: {request.url}: {request.failure}"))
    return trouble


def find() -> str | None:
    """The executable, where there is one on PATH."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def install() -> str:
    """Installs Debian's package, once for all test processes. Raises `NoChromium`."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise NoChromium(f"none of {', '.join(_NAMES)} on PATH, and no apt-get to install it with")
    if os.geteuid() != 0:
        raise NoChromium(
            f"none of {', '.join(_NAMES)} on PATH; as root the tests would install it: apt-get install chromium"
        )
    try:
        with FileLock(Path(tempfile.gettempdir()) / "loratory-chromium.lock", timeout=2 * _SECONDS):
            if find() is None:  # another process may have been first
                quiet = [apt, "-qq", "-y", "-o", f"DPkg::Lock::Timeout={_SECONDS}"]
                _carry_out([*quiet, "update"])
                _carry_out([*quiet, "install", "--no-install-recommends", "chromium"])
    except Timeout:
        raise NoChromium(f"another process has been installing it for {2 * _SECONDS} s") from None
    found = find()
    if found is None:
        raise NoChromium("apt-get installed the package chromium, and there is no such executable on PATH")
    return found


def _carry_out(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoChromium(f"{' '.join(command)} took more than {_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise NoChromium(f"{' '.join(command)}: {last}")
