"""The browser of the tests: found, installed, or missed with a reason; what goes wrong on a page is seen."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import browser
from tests.browser import NoChromium, watch


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which nothing is yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def command(folder: Path, name: str, script: str = "") -> None:
    """An executable that does what a shell script says."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_either_name_of_the_executable_is_found(empty_path):
    assert browser.find() is None
    command(empty_path, "chromium-browser")
    assert browser.find() == str(empty_path / "chromium-browser")
    command(empty_path, "chromium")
    assert browser.find() == str(empty_path / "chromium")


def test_where_nothing_can_install_it_the_reason_says_so(empty_path):
    with pytest.raises(NoChromium, match="on PATH, and no apt-get to install it with"):
        browser.install()


def test_only_root_installs(empty_path, monkeypatch):
    command(empty_path, "apt-get", "exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoChromium, match="as root the tests would install it: apt-get install chromium"):
        browser.install()


def test_root_installs_the_package_with_fresh_lists(empty_path, monkeypatch, tmp_path):
    log = tmp_path / "log"
    target = tmp_path / "chromium"
    installs = f'case "$@" in *install*) echo "" > {target}; /bin/chmod +x {target};; esac; echo "$@" >> {log}'
    command(empty_path, "apt-get", installs)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert browser.install() == str(empty_path / "chromium")
    update, install = log.read_text().splitlines()
    assert update.endswith(" update") and install.endswith(" install --no-install-recommends chromium")


def test_an_installation_that_fails_is_a_reason_with_its_last_line(empty_path, monkeypatch):
    command(empty_path, "apt-get", "echo first >&2; echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NoChromium, match=r"apt-get .* update: E: no network$"):
        browser.install()


def test_an_installation_that_hangs_is_a_reason(empty_path, monkeypatch):
    command(empty_path, "apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 300)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(NoChromium, match="update took more than 300 s"):
        browser.install()


def test_all_that_goes_wrong_on_a_page_is_seen(chromium):
    page = chromium.new_page()
    trouble = watch(page)
    page.set_content("<p>quiet</p>")
    page.evaluate("console.log('a remark is no trouble')")
    assert trouble == []
    page.evaluate("console.error('bad')")
    page.evaluate("setTimeout(() => { throw new Error('worse') })")
    page.set_content("<img src='http://127.0.0.1:1/none.png'>")
    page.wait_for_timeout(100)
    assert "console: bad" in trouble and "exception: worse" in trouble
    assert any(line.startswith("request: http://127.0.0.1:1/none.png: ") for line in trouble)
    page.close()
