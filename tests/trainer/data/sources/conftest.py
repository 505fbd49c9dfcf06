"""A package index and a Hub of our own, small and local, and an empty cache for each test."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORATORY_CACHE", str(folder))
    return folder


@dataclass
class Index:
    """A folder that pip takes its files from, and the files that a test puts there."""

    folder: Path

    def wheel(self, name: str, version: str, files: Mapping[str, bytes]) -> str:
        """Puts a wheel there; returns its sha256."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        content = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        return self._put(f"{module}-{version}-py3-none-any.whl", zipped(content))

    def sdist(self, name: str, version: str, files: Mapping[str, bytes]) -> str:
        """Puts a source distribution there; returns its sha256."""
        content = {f"{name}-{version}/{path}": data for path, data in files.items()}
        content[f"{name}-{version}/PKG-INFO"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
        return self._put(f"{name}-{version}.tar.gz", tarred(content))

    def _put(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An index of our own; pip sees no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder)


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def safetensors(numbers: int = 4) -> bytes:
    """A safetensors file with one float32 tensor of zeros."""
    size = 4 * numbers
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def model_files(**changed: bytes) -> dict[str, bytes]:
    """The files of a model that looks right but is tiny."""
    return {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": safetensors(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "special_tokens_map.json": b"{}",
    } | {name.replace("__", "."): data for name, data in changed.items()}


@dataclass
class Hub:
    """A server that answers as the Hub does, for the few questions that are asked of it."""

    commit: str = "0123456789abcdef0123456789abcdef01234567"
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "models/owner/name" → files
    asked: list[str] = field(default_factory=list)
    url: str = ""
    home: Path = Path()

    def run(self, code: str, **environment: str) -> str:
        """Runs Python code as a process whose Hub is this one; its output."""
        done = self.process(code, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def process(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=inherited | ours | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    state = Hub(home=tmp_path / "hf")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            state.asked.append(path)
            for name, files in state.repositories.items():
                if path.startswith(f"api/{name}/tree/"):
                    tree = [
                        {
                            "type": "file",
                            "path": file,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for file, data in files.items()
                    ]
                    self._send(json.dumps(tree).encode(), body)
                    return
                if path == f"api/{name}" or path.startswith(f"api/{name}/revision/"):
                    info = {
                        "id": name.split("/", 1)[1],
                        "sha": state.commit,
                        "siblings": [{"rfilename": file} for file in files],
                    }
                    self._send(json.dumps(info).encode(), body)
                    return
                start = f"{name.removeprefix('models/')}/resolve/"
                if path.startswith(start):
                    file = path.removeprefix(start).split("/", 1)[1]
                    if file in files:
                        tag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                        self._send(files[file], body, {"ETag": tag, "X-Repo-Commit": state.commit})
                        return
            self._send(b"{}", body, {"X-Error-Code": "RepoNotFound"}, 404)

        def _send(self, data: bytes, body: bool, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def helpers() -> type:
    """The functions of this file that make contents."""

    class Helpers:
        model_files = staticmethod(model_files)
        safetensors = staticmethod(safetensors)
        zipped = staticmethod(zipped)
        tarred = staticmethod(tarred)

    return Helpers


@pytest.fixture(scope="session")
def package_index() -> None:
    """Skips the test where the real package index can't be reached."""
    asked = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "index",
            "versions",
            "vaderSentiment",
            "--retries",
            "0",
            "--timeout",
            "20",
        ],
        capture_output=True,
        text=True,
    )
    if asked.returncode != 0:
        pytest.skip(f"the package index can't be reached: {asked.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="session")
def glue_folder() -> Path:
    """A local mirror of GLUE: LORATORY_GLUE, or shared/glue beside the checkout."""
    folder = Path(os.environ.get("LORATORY_GLUE") or ROOT.parent / "shared" / "glue")
    if not (folder / "cola").is_dir():
        pytest.skip(f"no mirror of GLUE: LORATORY_GLUE isn't set, and {folder} isn't one")
    return folder
