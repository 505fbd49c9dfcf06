"""The verb `spectrum`: a model's weights before training."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.stats.matrices import effective_rank
from tests.analysis.interpreter import python
from tests.classifiers import classifier
from trainer import config_files
from variants.core.decompositions import choose_rank, decompose
from weights import backbone, cli

pytestmark = pytest.mark.slow

QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`python -m weights spectrum …` in an empty folder; returns standard output."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str, code: int = 0) -> str:
        assert cli.main(["spectrum", *map(str, arguments)]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return called


def table(text: str) -> list[dict[str, str]]:
    """The Markdown table in a text, line by line."""
    lines = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_layers_are_those_that_all_linear_adapts(tiny_model):
    from trainer.model import backbone as models
    from variants.core import target_modules

    bare = models.skeleton(tiny_model, classifier(2))
    adapted = target_modules.select(bare, target_modules.ALL_LINEAR, head=models.head_modules(bare))
    assert {f"bert.{name}" for name in backbone.names(tiny_model)} == set(adapted)


def test_ranks_and_errors_are_those_of_the_decompositions(tiny_model):
    weight = load_file(tiny_model / "model.safetensors")[f"{QUERY}.weight"]
    methods = ["svd", "randomized_svd", "als", "nmf"]
    (layer,) = backbone.analyse({QUERY: tiny_model / "model.safetensors"}, [2, 5], [0.9], methods, seed=3)
    s = torch.linalg.svdvals(weight)
    np.testing.assert_allclose(layer.singular_values, s, rtol=1e-5)
    assert layer.shape == (16, 16)
    assert layer.effective_rank == pytest.approx(effective_rank(s.numpy()), rel=1e-5)
    assert layer.ranks == {
        "90 % energy": choose_rank(s, weight.shape, 0.9),
        "Gavish-Donoho": choose_rank(s, weight.shape, "gavish_donoho"),
    }
    for (method, rank), error in layer.errors.items():
        assert error == pytest.approx(decompose(weight, method, rank, seed=3).relative_error, abs=1e-6)
    assert len(layer.errors) == 8
    assert all(layer.errors["svd", rank] <= layer.errors[method, rank] + 1e-6 for method, rank in layer.errors)


def test_the_table_has_a_line_for_each_layer_and_their_mean(tiny_model, call):
    lines = table(call(tiny_model, "--ranks", "2,4", "--methods", "svd,als"))
    assert [line["layer"] for line in lines[:2]] == [
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.attention.self.key",
    ]
    assert (len(lines), lines[-1]["layer"]) == (13, "mean")
    assert list(lines[0]) == [
        *("layer", "size", "effective rank", "rank: 90 % energy", "rank: 99 % energy", "rank: Gavish-Donoho"),
        *("svd r=2", "als r=2", "svd r=4", "als r=4"),
    ]
    assert lines[4]["size"] == "32×16"
    values = [float(line["svd r=2"]) for line in lines[:-1]]
    assert float(lines[-1]["svd r=2"]) == pytest.approx(np.mean(values), abs=1e-4)


def test_targets_and_exclude_choose_layers_as_a_variant_does(tiny_model, call):
    lines = table(call(tiny_model, "--targets", "query,attention.output.dense", "--exclude", "layer.1.*"))
    names = [line["layer"] for line in lines[:-1]]
    assert names == ["encoder.layer.0.attention.output.dense", "encoder.layer.0.attention.self.query"]


def test_embeddings_can_be_asked_for(tiny_model, call):
    (line,) = table(call(tiny_model, "--targets", "word_embeddings"))
    assert line["size"] == "16×16"


def test_a_rank_that_a_weight_has_not_got_is_blank_and_said(tiny_model, call):
    text = call(tiny_model, "--targets", "query", "--ranks", "4,17", "--methods", "svd")
    assert {line["svd r=17"] for line in table(text)} == {""}
    assert f"Blank: the weight has fewer directions than that: {QUERY} (16)" in text


def test_output_holds_table_csv_and_figures(tiny_model, call):
    printed = call(tiny_model, "--output", "out", "--format", "svg", "--ranks", "2")
    names = {path.name.partition(".")[0] for path in Path("out").glob("*.svg")}
    assert names == {"backbone-spectrum", "backbone-energy", "backbone-ranks", "backbone-errors"}
    assert printed in Path("out/spectrum.md").read_text()
    rows = list(csv.DictReader(io.StringIO(Path("out/spectrum.csv").read_text())))
    assert len(rows) == 12
    assert list(rows[0])[5:9] == ["effective_rank", "rank_energy_0.9", "rank_energy_0.99", "rank_gavish_donoho"]
    assert float(rows[0]["error_nmf_2"]) > float(rows[0]["error_svd_2"])


def test_the_same_model_gives_the_same_bytes(tiny_model, call):
    for folder in ("one", "two"):
        call(tiny_model, "--output", folder, "--format", "svg", "--ranks", "2", "--targets", "query")
    one, two = ({p.name: p.read_bytes() for p in Path(folder).iterdir()} for folder in ("one", "two"))
    assert one == two and len(one) == 6


def test_a_model_of_conf_is_fetched_as_a_run_fetches_it(tiny_model, call):
    lines = table(call("folder", "--override", f"model.path={tiny_model}", "--methods", "svd", "--ranks", "2"))
    assert len(lines) == 13


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "model: 'nowhere', allowed: a folder, efficientnet_lite0, folder, hub, minilm"),
        (["folder"], "model: model.path: not given"),
        (["folder", "--override", "model.path=nowhere"], "model: model.path: 'nowhere' is not a folder"),
        (["{model}", "--override", "model.path=x"], "--override: 'model.path=x' with a folder, allowed: none"),
        (["{model}", "--targets", "quary"], "--targets: no matrix ends in 'quary'; there are: "),
        (["{model}", "--exclude", "quary"], "--exclude: no matrix ends in 'quary'"),
        (["{model}", "--exclude", "*"], "model: {model} has no matrix in a numbered block"),
        (["{model}", "--ranks", "0"], "--ranks: '0', allowed: whole numbers ≥ 1"),
        (["{model}", "--ranks", "x"], "--ranks: 'x', allowed: whole numbers ≥ 1"),
        (["{model}", "--energy", "1"], "--energy: '1', allowed: shares between 0 and 1"),
        (["{model}", "--methods", "qr"], "--methods: 'qr', allowed: svd, randomized_svd, als, nmf"),
        (["{model}", "--seed", "-1"], "--seed: -1, allowed: 0 ≤ seed < 2³²"),
    ],
)
def test_what_can_not_be_done_is_one_line(tiny_model, call, arguments, message):
    text = call(*(part.format(model=tiny_model) for part in arguments), code=2)
    assert text.startswith(f"weights: {message.format(model=tiny_model)}") and text.count("\n") == 1


def test_a_folder_without_safetensors_is_one_line(tmp_path, call):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"")
    assert "holds no weights as safetensors" in call("m", code=2)


def test_weights_in_several_files_are_one_model(tmp_path, tiny_model, call):
    weights = load_file(tiny_model / "model.safetensors")
    (tmp_path / "m").mkdir()
    halves = [{n: w for n, w in weights.items() if ("layer.1." in n) == second} for second in (False, True)]
    for number, half in enumerate(halves, 1):
        save_file(half, tmp_path / "m" / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text("{}")
    assert list(backbone.names(tmp_path / "m")) == list(backbone.names(tiny_model))


def test_a_weight_of_zeros_is_named(tmp_path, call):
    (tmp_path / "m").mkdir()
    save_file({"h.0.q.weight": torch.zeros(3, 3)}, tmp_path / "m" / "model.safetensors")
    assert call("m", code=2).startswith("weights: h.0.q: only zeros, or values that are not finite")


def test_half_precision_is_decomposed_in_float32(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 4).bfloat16()
    save_file({"h.0.q.weight": weight}, tmp_path / "model.safetensors")
    (layer,) = backbone.analyse(backbone.names(tmp_path), [2], [0.9], ["svd"], 0)
    np.testing.assert_allclose(layer.singular_values, torch.linalg.svdvals(weight.float()), rtol=1e-5)


def test_torch_is_loaded_by_this_verb_alone():
    code = "import sys, weights.cli, weights.spectrum, weights.backbone; print('torch' in sys.modules)"
    assert python("-c", code).stdout == b"False\n"


def test_a_model_of_the_users_own_configs_is_found(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(f"defaults: [folder]\nname: mine\npath: {tiny_model}\n")
    monkeypatch.setenv(config_files.VARIABLE, str(tmp_path))
    assert backbone.locate("mine") == tiny_model
