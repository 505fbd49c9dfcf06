"""Which source a model comes from, and what a model's folder must hold."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.data.sources import fetch, fetch_model, layout, model_identity
from trainer.data.sources.folder import FolderModel
from trainer.data.sources.hub import HubModel
from trainer.data.sources.package import ModelPackage
from trainer.data.sources.unavailable import Unavailable
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[4]


def save(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def hashes(files: dict[str, bytes], *names: str) -> dict[str, str]:
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names or files}


@dataclass(frozen=True)
class Broken:
    """A source that fails."""

    name: str = "broken"

    def __str__(self) -> str:
        return self.name

    def fetch(self) -> Path:
        raise ConfigError(f"{self.name}: out of order")

    def identity(self) -> dict[str, str]:
        return {}


def test_the_first_source_with_the_right_content_is_taken(cache, index, helpers, caplog):
    good, bad = helpers.model_files(), helpers.model_files(model__safetensors=helpers.safetensors(8))
    sources = [Broken()]
    for name, files in (("bad-model", bad), ("good-model", good)):
        module = name.replace("-", "_")
        digest = index.wheel(name, "1", {f"{module}/{file}": data for file, data in files.items()})
        sources.append(ModelPackage(f"{name}==1", digest, module))
    folder = fetch_model(sources, hashes(good, "model.safetensors"))
    assert (folder / "model.safetensors").read_bytes() == good["model.safetensors"]
    assert "package bad-model==1 is rejected: model.safetensors: wrong sha256" in caplog.text
    assert [path.name.split("-1-")[0] for path in (cache / "packages").iterdir()] == ["good-model"]


def test_all_sources_failing_is_one_line_that_names_each(cache, tmp_path, helpers):
    folder = save(tmp_path / "model", helpers.model_files())
    with pytest.raises(ConfigError) as error:
        fetch_model([Broken("one"), Broken("two"), FolderModel(str(folder))], {"model.safetensors": "0" * 64})
    text = str(error.value)
    assert "\n" not in text
    assert (
        "(1) one: out of order | (2) two: out of order | (3) folder" in text
        and text.count("; instead: model=folder") == 1
    )
    assert f"wrong sha256: expected {'0' * 64}, found" in text
    assert folder.is_dir(), "the user's own folder stays"


def test_the_weights_are_hashed_once_per_copy(cache, tmp_path, helpers, monkeypatch):
    files = helpers.model_files()
    folder = save(tmp_path / "model", files)
    sources, expected = [FolderModel(str(folder))], hashes(files)
    counted: list[Path] = []
    true = fetch.sha256
    monkeypatch.setattr(fetch, "sha256", lambda path: counted.append(path) or true(path))
    for _ in range(3):
        assert fetch_model(sources, expected) == folder
    assert len(counted) == len(files)
    (folder / "model.safetensors").write_bytes(helpers.safetensors(8))
    with pytest.raises(ConfigError, match=r"model.safetensors: wrong sha256"):
        fetch_model(sources, expected)


def test_the_error_of_an_only_source_is_its_own():
    with pytest.raises(ConfigError, match=r"^broken: out of order$"):
        fetch_model([Broken()], {})


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(Unavailable("package a==1", "gone", "task=file")))
    assert isinstance(error, Unavailable)
    assert str(error) == "package a==1: gone; instead: task=file"


def test_settings_are_checked(helpers):
    with pytest.raises(ConfigError, match=r"model.sources: empty"):
        fetch_model([], {})
    with pytest.raises(ConfigError, match=r"model.files: empty with 2 sources"):
        fetch_model([Broken(), Broken()], {})
    with pytest.raises(ConfigError, match=r"model.files.config.json: 'abc' is not a sha256"):
        fetch_model([Broken()], {"config.json": "abc"})
    with pytest.raises(ConfigError, match="file names without a folder"):
        fetch_model([Broken()], {"../config.json": "0" * 64})
    with pytest.raises(ConfigError, match=r"model.path: not given"):
        FolderModel("???")


def test_the_identity_of_a_folder_is_its_content_and_never_its_place(tmp_path, helpers):
    files = helpers.model_files()
    one, other = (save(tmp_path / name, files | {"README.md": name.encode()}) for name in ("one", "other"))
    identity = FolderModel(str(one)).identity()
    assert identity == FolderModel(str(other)).identity() == hashes(files)
    (other / "model.safetensors").write_bytes(helpers.safetensors(8))
    assert FolderModel(str(other)).identity() != identity
    assert model_identity([FolderModel(str(one))], {}) == identity
    assert model_identity([FolderModel(str(one))], hashes(files)) == {}


def test_two_packages_are_two_models_where_no_file_is_pinned():
    one, other = (ModelPackage("a==1", digit * 64, "folder") for digit in "01")
    assert model_identity([one], {}) != model_identity([other], {})
    assert model_identity([one], {}) != model_identity([ModelPackage("a==1", "0" * 64, "other")], {})
    pinned = {"config.json": "0" * 64, "model.safetensors": "1" * 64}
    assert model_identity([one], pinned) == one.identity(), "its tokenizer may be another"
    for reads in (["tokenizer.json", "tokenizer_config.json"], ["preprocessor_config.json"]):
        whole = pinned | dict.fromkeys(reads, "2" * 64)
        package = ModelPackage("a==1", "0" * 64, "folder", files=tuple(whole))
        assert model_identity([package], whole) == {}, "the content decides, wherever it comes from"


@pytest.mark.parametrize("left", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_of_a_package_that_is_not_pinned_is_a_part_of_its_content(left):
    package = ModelPackage("a==1", "0" * 64, "folder")
    assert model_identity([package], dict.fromkeys(layout.ENCODER_FILES, "1" * 64)) == {}
    part = dict.fromkeys(set(layout.ENCODER_FILES) - {left}, "1" * 64)
    assert model_identity([package], part) == package.identity()


@pytest.mark.parametrize(
    ("reads", "missing"),
    [
        (["vocab.txt"], "tokenizer_config.json"),
        (["tokenizer.json"], "tokenizer_config.json"),
        (["vocab.json", "tokenizer_config.json"], "merges.txt"),
        (["vocab.json", "merges.txt", "tokenizer_config.json"], ""),
        (["preprocessor_config.json"], ""),
    ],
)
def test_a_vocabulary_alone_pins_no_tokenizer(reads, missing):
    assert layout.unpinned({"config.json", "model.safetensors", *reads}) == missing


def test_a_commit_of_the_hub_names_a_model_whose_tokenizer_is_pinned_in_part():
    hub, files = HubModel("us/it", "0" * 40), ("config.json", "model.safetensors", "vocab.txt")
    assert model_identity([hub], dict.fromkeys(files, "1" * 64)) == {"repo": "us/it", "commit": "0" * 40}
    assert model_identity([hub], dict.fromkeys((*files, "tokenizer_config.json"), "1" * 64)) == {}


@pytest.mark.parametrize("pinned", [["config.json"], ["model.safetensors"], ["tokenizer.json"]])
def test_files_that_pin_a_part_of_a_model_leave_the_rest_to_its_content(pinned, tmp_path, helpers):
    files = helpers.model_files()
    one, other = (save(tmp_path / name, files) for name in ("one", "other"))
    changed = "config.json" if "config.json" not in pinned else "model.safetensors"
    (other / changed).write_bytes(files[changed] + b" ")
    part = {name: digest for name, digest in hashes(files).items() if name in pinned}
    assert model_identity([FolderModel(str(one))], part) != model_identity([FolderModel(str(other))], part)


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_of_a_folder_that_is_not_pinned_is_a_part_of_its_content(changed, tmp_path, helpers):
    """Two tokenizers around the same pinned weights are two models."""
    files = helpers.model_files()
    one, other = (save(tmp_path / name, files) for name in ("one", "other"))
    (other / changed).write_bytes(files[changed] + b" ")
    part = {name: digest for name, digest in hashes(files).items() if name != changed}
    assert model_identity([FolderModel(str(one))], part) != model_identity([FolderModel(str(other))], part)


@pytest.mark.parametrize(
    "names, missing",
    [
        (["model.safetensors"], "config.json, the tokenizer"),
        (["config.json", "tokenizer.json"], "the weights"),
        (["config.json", "model.safetensors"], "the tokenizer"),
    ],
    ids=["weights", "no weights", "no tokenizer"],
)
def test_several_sources_are_one_model_only_if_all_its_parts_are_pinned(names, missing):
    sources, files = [Broken("one"), Broken("two")], dict.fromkeys(names, "0" * 64)
    with pytest.raises(ConfigError, match=f"model.files: {', '.join(names)} with 2 sources; allowed: .* of {missing}"):
        model_identity(sources, files)
    parts = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert model_identity(sources, dict.fromkeys(parts, "0" * 64)) == {}


def test_an_index_of_weights_pins_none_of_them(tmp_path):
    names = ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
    index = dict.fromkeys(names, "0" * 64)
    package = ModelPackage("a==1", "0" * 64, "folder", files=(*index, "model-1-of-1.safetensors"))
    assert model_identity([package], index) == package.identity()
    assert model_identity([package], index | {"model-1-of-1.safetensors": "2" * 64}) == {}


def test_what_is_wrong_with_a_folder_is_said(tmp_path, helpers):
    files = helpers.model_files()
    folder = save(tmp_path / "model", files)
    assert layout.problem(folder) is None

    def trouble(**changes: bytes | None) -> str:
        changed = files | {name.replace("__", "."): data for name, data in changes.items()}
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(ConfigError) as error:
            FolderModel(str(save(place, {n: d for n, d in changed.items() if d is not None}))).fetch()
        assert "\n" not in str(error.value) and "model.path" in str(error.value)
        return str(error.value)

    assert "config.json is missing (found: model.safetensors" in trouble(config__json=None)
    assert "config.json can't be read" in trouble(config__json=b"{")
    assert "no model_type" in trouble(config__json=b"{}")
    assert "the weights are missing" in trouble(model__safetensors=None)
    assert "the tokenizer is missing" in trouble(tokenizer__json=None)
    whole = files["model.safetensors"]
    assert f"truncated: {len(whole) - 1} bytes of {len(whole)}" in trouble(model__safetensors=whole[:-1])
    assert "truncated or not a safetensors" in trouble(model__safetensors=whole[:20])
    assert "header can't be read" in trouble(model__safetensors=(4).to_bytes(8, "little") + b"abcd")
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    sharded = {"model__safetensors": None, "model__safetensors__index__json": index}
    text = trouble(**sharded, **{"model-1-of-2.safetensors": whole})
    assert "names files that are missing: model-2-of-2.safetensors" in text
    with pytest.raises(ConfigError, match="is not a folder"):
        FolderModel(str(tmp_path / "nowhere")).fetch()


def test_of_several_copies_of_the_weights_one_is_needed():
    names = {
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "vocab.txt",
        "onnx/model.onnx",
    }
    assert layout.needed(names) == ["config.json", "vocab.txt", "model.safetensors"]
    sharded = {"pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", "config.json"}
    assert layout.needed(sharded) == ["config.json", *sorted(sharded - {"config.json"}, reverse=True)]


def test_importing_sources_and_metrics_is_cheap():
    code = (
        "import sys, trainer.objectives.metrics\n"
        "from trainer.data.sources import arithmetic, boolq, commonsense, digits, efficientnet, entities, files, gguf\n"
        "from trainer.data.sources import glue, hub, hub_rows, news, package, spans, vader\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'sklearn', 'scipy',"
        " 'pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.network
def test_minilm_is_the_same_from_both_packages(package_index):
    """Both packages hold the files that conf/model/minilm.yaml pins, so either would do."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / "minilm.yaml"))
    assert isinstance(config, dict)
    for source in config["sources"][:2]:
        assert source.pop("_target_") == "trainer.data.sources.package.ModelPackage"
        folder = fetch_model([ModelPackage(**source)], config["files"])
        assert layout.problem(folder) is None
