"""`python -m variants`: a run is trained, handed over, and loaded by others' code alone."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2Model

from tests.conftest import write_csv
from tests.trainer.edited import without_hashes
from trainer.runs.finished import opened
from weights import roundtrip
from weights.cli import main
from weights.tables import markdown

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.slow

TEXTS = ["a lovely film", "the plot is awful very awful", "dull"]


@pytest.fixture
def trained(finished_run):
    """The folder of a tiny run of six steps."""
    return functools.partial(finished_run, "train.max_steps=6")


def encoded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", padding=True)


@torch.no_grad()
def as_trained(folder: Path, batch: Any) -> torch.Tensor:
    with opened(folder) as run:
        return run.model(**batch).logits


@torch.no_grad()
def loaded_with_peft(adapter: Path, model: Path, batch: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=dtype)
    if base.config.pad_token_id is None:
        base.config.pad_token_id = 0
    return peft.PeftModel.from_pretrained(base, adapter).eval()(**batch).logits


@torch.no_grad()
def loaded_alone(folder: Path, batch: Any) -> torch.Tensor:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits


RUNS = [
    [],
    ["variant.init=pissa", "variant.rank=2"],
    ["variant=increlora", "variant.target_rank=2", "variant.top=3"],
    ["variant=sparse", "variant.rank=4"],
    ["variant=shira", "variant.rank=2"],
    ["variant=svdiff"],
    ["variant=peft_lora"],
    ["variant=peft_adalora", *(f"variant.options.{name}=2" for name in ("tinit", "tfinal", "target_r"))],
]


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_a_run_goes_out_with_equal_logits(trained, tiny_model, overrides):
    folder, batch = trained(*overrides), encoded(tiny_model)
    wanted = as_trained(folder, batch)
    assert main(["export", str(folder), "--to", "peft"]) == 0
    found = loaded_with_peft(folder / "export" / "peft", tiny_model, batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert main(["export", str(folder), "--to", "merged"]) == 0
    torch.testing.assert_close(loaded_alone(folder / "export" / "merged", batch), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overrides", [["variant.rank=3"], ["variant=shira", "variant.rank=2"]], ids=" ".join)
def test_in_float64_they_are_equal_to_its_last_digits(trained, tiny_model, tmp_path, overrides):
    folder, batch = trained(*overrides, "model.dtype=float64"), encoded(tiny_model)
    wanted = as_trained(folder, batch)
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to, "--output", str(tmp_path / to)]) == 0
    torch.testing.assert_close(
        loaded_with_peft(tmp_path / "peft", tiny_model, batch, torch.float64), wanted, rtol=0, atol=1e-12
    )
    found = loaded_alone(tmp_path / "merged", batch)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_above_bfloat16_the_checkpoint_keeps_the_precision(trained, tiny_model, capsys):
    folder, batch = trained("model.dtype=bfloat16"), encoded(tiny_model)
    wanted = as_trained(folder, batch)
    assert main(["export", str(folder), "--to", "merged"]) == 0
    tensors = load_file(folder / "export" / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    found = loaded_alone(folder / "export" / "merged", batch)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)
    assert main(["export", str(folder), "--to", "peft"]) == 0
    found = loaded_with_peft(folder / "export" / "peft", tiny_model, batch, torch.bfloat16)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize("variant", ["full", "bitfit", "head"])
def test_methods_without_adapters_go_out_merged_and_are_no_thing_for_peft(trained, tiny_model, variant, capsys):
    folder, batch = trained(f"variant={variant}", "optim.lr=1e-3"), encoded(tiny_model)
    assert main(["export", str(folder), "--to", "peft"]) == 2
    assert capsys.readouterr().err == f"weights: --to peft: {variant} wraps no layer; allowed: merged\n"
    assert main(["export", str(folder), "--to", "peft", "--rank", "2"]) == 2
    assert capsys.readouterr().err.startswith(f"weights: --rank: 2 for {variant}, which has no adapters")
    assert main(["truncate", str(folder), "--rank", "2"]) == 2
    assert "has no adapters" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "merged"]) == 0
    wanted = as_trained(folder, batch)
    torch.testing.assert_close(loaded_alone(folder / "export" / "merged", batch), wanted, rtol=0, atol=1e-6)


def test_a_layer_pruned_to_rank_0_is_trained_saved_loaded_merged_and_exported(trained, tiny_model, capsys):
    folder, batch = trained("variant=adalora", "variant.rank=4", "variant.target_rank=1"), encoded(tiny_model)
    with opened(folder) as run:
        ranks = run.variant.ranks()
        empty = {name for name, rank in ranks.items() if rank == 0}
        assert empty and len(set(ranks.values())) > 1
        wanted = run.model(**batch).logits.detach()
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to]) == 0
    found = loaded_with_peft(folder / "export" / "peft", tiny_model, batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded_alone(folder / "export" / "merged", batch), wanted, rtol=0, atol=1e-6)
    config = json.loads((folder / "export" / "peft" / "adapter_config.json").read_text())
    assert not empty & set(config["target_modules"])
    report = json.loads((folder / "export" / "peft" / "handover.json").read_text())
    assert {name: layer["rank"] for name, layer in report["layers"].items()} == ranks
    assert re.search(rf"\| peft \| +{12 - len(empty)} \| +{len(empty)} \| +1 to ", capsys.readouterr().out)


def test_where_every_layer_has_rank_0_merged_is_left(trained, tiny_model, capsys):
    folder = trained("variant=sora", "variant.threshold=10", "train.max_steps=2")
    assert main(["export", str(folder), "--to", "peft"]) == 2
    message = "weights: --to peft: all 12 layers have rank 0, PEFT needs one with more; allowed: merged\n"
    assert capsys.readouterr().err == message
    assert main(["export", str(folder), "--to", "merged"]) == 0
    assert sorted(path.name for path in (folder / "export").iterdir()) == ["merged"]
    assert main(["truncate", str(folder), "--rank", "1"]) == 0


def test_conv1d_layers_of_a_decoder_go_out_too(trained, tiny_model, tmp_path):
    model = tmp_path / "gpt2"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(model)
    config = GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=24, pad_token_id=0)
    torch.manual_seed(0)
    GPT2Model(config).save_pretrained(model)
    folder, batch = trained(f"model.path={model}", "variant.rank=3"), encoded(model)
    batch.pop("token_type_ids", None)
    wanted = as_trained(folder, batch)
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to]) == 0
    found = loaded_with_peft(folder / "export" / "peft", model, batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded_alone(folder / "export" / "merged", batch), wanted, rtol=0, atol=1e-6)
    assert json.loads((folder / "export" / "peft" / "adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_the_report_says_what_went_out(trained, tiny_model, capsys):
    folder = trained("variant.rank=4", "+variant.rank_pattern.query=2")
    assert main(["export", str(folder), "--to", "peft"]) == 0
    place = folder / "export" / "peft"
    report = json.loads((place / "handover.json").read_text())
    adapter = 2 * (2 * (16 + 16) + 4 * (3 * (16 + 16) + 2 * (16 + 32)))
    head = (16 * 16 + 16) + (16 * 2 + 2)
    assert report["parameters"] == {"total": adapter + head, "head": head}
    assert sum(layer["parameters"] for layer in report["layers"].values()) == adapter
    assert report["bytes"] == (place / "adapter_model.safetensors").stat().st_size
    assert report["exact"] is True and report["rank"] is None and report["largest_relative_error"] < 1e-6
    layer = report["layers"]["bert.encoder.layer.0.attention.self.query"]
    assert (layer["rank"], layer["full_rank"], layer["weights"], layer["exact"]) == (2, 2, 256, True)
    assert report["labels"] == ["bad", "good"] and report["head"] == ["classifier", "bert.pooler"]
    assert report["run_id"] == folder.name and report["version"] == 1
    assert report["versions"]["export"]["peft"] == peft.__version__ and report["versions"]["run"]["torch"]
    assert report["check"]["rows"] == 24 and report["check"]["largest_difference"] < 1e-6
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and config["task_type"] == "SEQ_CLS"
    assert len(config["rank_pattern"]) == 2 and set(config["rank_pattern"].values()) == {2}
    assert config["base_model_name_or_path"] == str(tiny_model)
    out = capsys.readouterr().out
    assert f"2 to 4, sum {2 * (2 + 5 * 4)} |      {adapter:,} |  306 |" in out
    assert "loaded again, on 24 rows of validation: logits differ by at most " in out


def test_the_same_run_goes_out_as_the_same_bytes(trained, tmp_path):
    folder = trained("train.max_steps=2")
    for name in "ab":
        assert main(["export", str(folder), "--to", "peft", "--output", str(tmp_path / name)]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    own = ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "handover.json"]
    assert names == [*own, "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_rank_that_is_asked_for_is_cut_to_and_its_error_said(trained, tiny_model, tmp_path, capsys):
    folder, batch = trained("variant.rank=4", "optim.lr=5e-2"), encoded(tiny_model)
    with opened(folder) as run:
        adapters = run.variant.adapters
        errors = {}
        for name, adapter in adapters.items():
            s = torch.linalg.svdvals(adapter.delta().detach().double())
            errors[name] = float(s[2:].square().sum().sqrt() / s.square().sum().sqrt())
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to, "--rank", "2", "--output", str(tmp_path / to)]) == 0
        report = json.loads((tmp_path / to / "handover.json").read_text())
        assert report["rank"] == 2 and report["exact"] is False
        for name, layer in report["layers"].items():
            assert (layer["rank"], layer["full_rank"], layer["exact"]) == (2, 4, False)
            assert layer["relative_error"] == pytest.approx(errors[name], rel=1e-4)
        assert report["largest_relative_error"] == pytest.approx(max(errors.values()), rel=1e-4)
        out = capsys.readouterr().out
        assert out.count("bert.encoder.layer") == 12 and f"{max(errors.values()):.1e}" in out
    cut = loaded_with_peft(tmp_path / "peft", tiny_model, batch)
    torch.testing.assert_close(loaded_alone(tmp_path / "merged", batch), cut, rtol=0, atol=1e-5)
    assert not torch.allclose(cut, as_trained(folder, batch), rtol=0, atol=1e-5)


def test_the_checkpoint_names_the_labels_and_has_the_tokenizer(trained, tiny_model):
    folder = trained("variant=head", "train.max_steps=2")
    assert main(["export", str(folder), "--to", "merged"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(folder / "export" / "merged")
    assert model.config.id2label == {0: "bad", 1: "good"} and model.config.label2id == {"bad": 0, "good": 1}
    assert torch.equal(encoded(folder / "export" / "merged").input_ids, encoded(tiny_model).input_ids)


def test_a_regression_goes_out_as_one(trained, tmp_path):
    path = write_csv(tmp_path / "train.csv", 32, 1)
    path.write_text(path.read_text().replace(",good", ",1.5").replace(",bad", ",-2"))
    paths = [f"task.source.train_path={path}", f"task.source.validation_path={path}"]
    folder = trained(*paths, "task.source.kind=regression", "task.metrics=[pearson]", "train.max_steps=2")
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to]) == 0
    config = AutoModelForSequenceClassification.from_pretrained(folder / "export" / "merged").config
    assert config.num_labels == 1 and config.problem_type == "regression"
    assert json.loads((folder / "export" / "peft" / "handover.json").read_text())["labels"] is None


def test_an_export_that_computes_something_else_is_never_there(trained, monkeypatch, capsys):
    folder = trained("train.max_steps=2")
    from weights import export

    def spoiled(run, place, write=export._write_merged):
        model = write(run, place)
        with torch.no_grad():
            model.classifier.bias += 1
        return model

    monkeypatch.setattr(export, "_write_merged", spoiled)
    assert main(["export", str(folder), "--to", "merged"]) == 2
    assert "loaded again, the model's logits differ by up to 1.0e+00" in capsys.readouterr().err
    assert list((folder / "export").iterdir()) == []


def test_what_peft_can_not_load_again_is_said_in_one_line(trained, capsys, monkeypatch):
    folder = trained("variant=peft", "variant.method=ia3", "variant.targets=[key,dense]", "train.max_steps=2")

    def refuse(*arguments, **keywords):
        raise ValueError("two\nlines")

    with monkeypatch.context() as patched:
        patched.setattr(peft.PeftModel, "from_pretrained", refuse)
        assert main(["export", str(folder), "--to", "peft"]) == 2
    assert capsys.readouterr().err == "weights: --to peft: PEFT can't load what it wrote: two lines\n"
    for to in ("peft", "merged"):
        assert main(["export", str(folder), "--to", to]) == 0


def test_prompts_go_out_to_peft_and_can_not_be_merged(trained, tiny_model, capsys):
    prompt = ["variant=peft", "variant.method=prompt_tuning", "+variant.options.num_virtual_tokens=3"]
    folder, batch = trained(*prompt), encoded(tiny_model)
    assert main(["export", str(folder), "--to", "peft"]) == 0
    found = loaded_with_peft(folder / "export" / "peft", tiny_model, batch)
    torch.testing.assert_close(found, as_trained(folder, batch), rtol=0, atol=1e-6)
    assert main(["export", str(folder), "--to", "merged"]) == 2
    assert "--to merged: PEFT can't merge prompt_tuning: it is in no layer's weight" in capsys.readouterr().err


def test_truncation_gives_the_metric_against_the_rank_that_is_kept(trained, capsys):
    folder = trained("variant=increlora", "variant.target_rank=4", "variant.top=8", "optim.lr=5e-2")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    record = json.loads(before["record.json"])
    assert main(["truncate", str(folder), "--rank", "2,1,64,2"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
    found = json.loads((folder / "truncation.json").read_text())
    assert found["version"] == 1 and found["run_id"] == folder.name and found["metric"] == "accuracy"
    trained_, (one, two, all_) = found["trained"], found["cut"]
    assert trained_["metrics"]["accuracy"] == record["metric.value"] and trained_["total_rank"] == 48
    assert trained_["effective"] == record["params.effective"] == 48 + trained_["parameters"]
    assert [cut["rank"] for cut in found["cut"]] == [1, 2, 64]
    assert one["total_rank"] == 12 and one["total_rank"] < two["total_rank"] < all_["total_rank"] == 48
    assert one["parameters"] == 2 * (4 * (16 + 16) + 2 * (16 + 32))
    assert 1 > one["relative_error"] > two["relative_error"] > 1e-3 > all_["relative_error"]
    assert all_["metrics"] == trained_["metrics"] and all_["loss"] == pytest.approx(trained_["loss"], rel=1e-5)
    with opened(folder) as run:  # the same by other means: all layers side by side as one matrix
        deltas = {name: adapter.delta().detach().double() for name, adapter in run.variant.adapters.items()}
    left = {name: torch.linalg.svdvals(delta)[1:].square().sum() for name, delta in deltas.items()}
    whole = {name: delta.square().sum() for name, delta in deltas.items()}
    assert one["relative_error"] == pytest.approx(float((sum(left.values()) / sum(whole.values())).sqrt()), rel=1e-4)
    mean = sum(float((left[name] / whole[name]).sqrt()) for name in deltas) / 12
    assert one["mean_relative_error"] == pytest.approx(mean, rel=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| rank       | sum | parameters kept | relative error, mean of layers | by energy |")
    assert [line.split("|")[1].strip() for line in lines[4:8]] == ["as trained", "1", "2", "64"]
    assert lines[4].endswith(f"{record['metric.value']:.4f} |")


def test_one_threshold_cuts_all_layers_to_a_mean_rank(trained, capsys):
    folder = trained("variant=increlora", "variant.target_rank=4", "variant.top=8", "optim.lr=5e-2")
    assert main(["truncate", str(folder), "--global", "--rank", "1,2,64"]) == 0
    assert not (folder / "truncation.json").exists()
    found = json.loads((folder / "truncation_global.json").read_text())
    one, two, all_ = found["cut"]
    assert [cut["total_rank"] for cut in found["cut"]] == [12, 24, 48]
    with opened(folder) as run:
        deltas = {name: adapter.delta().detach().double() for name, adapter in run.variant.adapters.items()}
    values = {name: torch.linalg.svdvals(delta) for name, delta in deltas.items()}
    together = torch.cat(list(values.values())).sort(descending=True).values
    assert one["threshold"] == pytest.approx(float(together[11]), rel=1e-4)
    for cut in (one, two):
        for name, layer in cut["layers"].items():
            assert layer["rank"] == int((values[name] >= cut["threshold"] * (1 - 1e-5)).sum())
    left_out = (together[12:].square().sum() / together.square().sum()).sqrt()
    assert one["relative_error"] == pytest.approx(float(left_out), rel=1e-4), "no cut of that many ranks errs less"
    assert len({layer["rank"] for layer in one["layers"].values()}) > 1
    assert all_["metrics"] == found["trained"]["metrics"]
    assert "rank: the mean over layers that are cut by one threshold" in capsys.readouterr().out


def test_a_cut_model_is_the_one_that_is_evaluated(trained, tmp_path):
    folder = trained("variant.rank=4", "optim.lr=5e-2")
    assert main(["truncate", str(folder), "--rank", "1"]) == 0
    assert main(["export", str(folder), "--to", "merged", "--rank", "1", "--output", str(tmp_path / "cut")]) == 0
    cut = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut").eval()
    with opened(folder) as run:
        labels = run.context.rows.report["validation"].labels
        logits = roundtrip.outputs(run, cut)  # all 24 rows
    found = json.loads((folder / "truncation.json").read_text())["cut"][0]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["metrics"]["accuracy"] == (logits.argmax(1).numpy() == labels).mean()


def test_what_can_not_be_done_is_one_line_and_exit_code_2(trained, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    for arguments in (["export", str(nowhere), "--to", "merged"], ["truncate", str(nowhere), "--rank", "1"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"weights: {nowhere}: not a finished run; record.json is missing\n"
    folder = trained("train.max_steps=2")
    assert main(["export", str(folder), "--to", "merged", "--output", str(tmp_path)]) == 2
    message = f"weights: --output: {tmp_path} is there already; name another folder, or remove it\n"
    assert capsys.readouterr().err == message
    (tmp_path / "file").write_text("")
    assert main(["export", str(folder), "--to", "merged", "--output", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err.startswith(f"weights: --output: {tmp_path / 'file' / 'x'} can't be written: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: <verb>"),
        (["export", "x"], "the following arguments are required: --to"),
        (["export", "x", "--to", "gguf"], "argument --to: invalid choice: 'gguf'"),
        (["export", "x", "--to", "peft", "--rank", "0"], "argument --rank: '0', allowed: a whole number ≥ 1"),
        (["truncate", "x", "--rank", "1,two"], "argument --rank: 'two', allowed: a whole number ≥ 1"),
        (["truncate", "x"], "the following arguments are required: --rank"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["export"], ["predict"], ["truncate"]], ids=str)
def test_help_comes_up_without_torch(verb):
    code = (
        "import sys; from weights.cli import main\n"
        f"try: main({[*verb, '--help']})\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'hydra') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n") and out.startswith("usage: python -m weights")
    if verb:
        assert f"python -m weights {verb[0]} runs/demo/" in out


def test_the_library_knows_nothing_of_trainers():
    code = (
        "import sys, variants.testing.contract, variants.core.handover, variants.lora, variants.peft\n"
        "names = ('trainer', 'transformers', 'peft', 'hydra', 'weights')\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_table_is_padded_and_its_numbers_stand_right():
    assert markdown(["rank", "n"], [["as trained", "1,000"], ["1", "2"]]).splitlines() == [
        "| rank       |     n |",
        "| :--------- | ----: |",
        "| as trained | 1,000 |",
        "| 1          |     2 |",
    ]


def test_an_adapter_that_was_changed_after_export_is_another_one(trained, tiny_model):
    """The comparison of these tests can fail: one number in the file moves the logits."""
    folder, batch = trained("optim.lr=5e-2"), encoded(tiny_model)
    assert main(["export", str(folder), "--to", "peft"]) == 0
    path = folder / "export" / "peft" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: tensors[name] * 1.5}, path, metadata={"format": "pt"})
    found = loaded_with_peft(folder / "export" / "peft", tiny_model, batch)
    assert not torch.allclose(found, as_trained(folder, batch), rtol=0, atol=1e-6)


def test_an_export_is_compared_with_what_the_run_predicted_itself(trained, capsys):
    folder = trained()
    assert main(["export", str(folder), "--to", "merged"]) == 0
    assert "as in predictions.parquet: on 24 rows of validation logits differ by at most " in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", [["export", "--to", "merged"], ["export", "--to", "peft"], ["truncate", "--rank", "1"]]
)
@pytest.mark.parametrize("known", [True, False], ids=["", "without hashes"])
def test_a_damaged_adapter_goes_nowhere(trained, capsys, verb, known):
    folder = trained()
    if not known:
        without_hashes(folder)
    path = folder / "adapter" / "state.safetensors"
    state = load_file(path)
    save_file({name: -value if "classifier" in name else value for name, value in state.items()}, path)
    assert main([verb[0], str(folder), *verb[1:]]) == 2
    out, err = capsys.readouterr()
    expected = (
        "not what this run trained" if known else "not the model that the run evaluated: on 24 rows of validation"
    )
    assert expected in err and "Traceback" not in err and not out
    assert not (folder / "export").exists() and not (folder / "truncation.json").exists()


def test_what_there_is_nothing_to_compare_with_is_said(trained, capsys):
    folder = trained()
    without_hashes(folder)
    (folder / "predictions.parquet").unlink()
    assert main(["export", str(folder), "--to", "merged"]) == 0
    out = capsys.readouterr().out
    assert "not compared with the run's own predictions: there is no predictions.parquet; the record has no hash" in out


def test_predictions_that_are_not_the_runs_are_refused(trained, capsys):
    folder = trained()
    (folder / "predictions.parquet").write_bytes(b"none")
    assert main(["export", str(folder), "--to", "merged"]) == 2
    assert "predictions.parquet: not what the run wrote" in capsys.readouterr().err
    without_hashes(folder)
    assert main(["export", str(folder), "--to", "merged"]) == 2
    assert "predictions.parquet: can't be read: " in capsys.readouterr().err
