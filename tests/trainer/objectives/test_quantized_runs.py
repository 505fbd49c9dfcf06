"""Runs above a quantised backbone: they learn, are resumed, predicted and exported as others are."""

from __future__ import annotations

import json

import pytest
import torch

from tests.composing import composed
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import overrides
from trainer.errors import ConfigError
from trainer.model import backbone
from trainer.model.architecture import Architecture
from trainer.runs import assemble, dry_run
from trainer.sweeps.plan import plan
from variants.core import quantized

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("how", quantized.HOW)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_learns(how, dtype, trained):
    record = trained("response", f"model.quantize={how}", f"model.dtype={dtype}", "train.max_steps=40")
    untrained = trained("response", f"model.quantize={how}", f"model.dtype={dtype}", "variant=base")
    assert record.metrics["perplexity"] < 0.7 * untrained.metrics["perplexity"]


@pytest.mark.parametrize("variant", ["adalora", "sora", "sparse", "dora", "svft", "shira", "lora_xs"])
def test_methods_train_above_it(variant, trained):
    assert trained("choices", "model.quantize=nf4", f"variant={variant}").status == "done"


def test_without_it_a_run_keeps_its_name(llama, tables, tmp_path):
    names = [
        plan(composed([*overrides(llama, tmp_path), *tables["text"], *more])).run_id
        for more in ([], ["model.quantize=null"], ["model.quantize=nf4"])
    ]
    assert names[0] == names[1] != names[2]


def test_a_dry_run_counts_what_the_run_holds(llama, tables, tmp_path, trained):
    everything = ["model.quantize=nf4"]
    record, whole = trained("text", *everything), trained("text")
    found = dry_run.predict(plan(composed([*overrides(llama, tmp_path), *tables["text"], *everything])))
    assert (found.weights, found.activations) == (record.memory.weights, record.memory.activations)
    assert record.params.total == whole.params.total and record.memory.weights < whole.memory.weights


def test_interrupted_it_ends_with_the_same_bits(llama, tables, tmp_path, monkeypatch):
    from trainer.loop.loop import Loop
    from trainer.runs.run import run

    def carried_out(folder):
        everything = [*overrides(llama, folder), *tables["response"], "model.quantize=nf4", "machine.save_every=3"]
        planned = plan(composed(everything))
        return planned, lambda: run(planned, everything)

    _, straight = carried_out(tmp_path / "straight")
    expected = straight()
    _, again = carried_out(tmp_path / "stopped")
    make_step = Loop.make_step

    def stop(self, index, batches):
        if index == 6:
            raise KeyboardInterrupt
        make_step(self, index, batches)

    monkeypatch.setattr(Loop, "make_step", stop)
    with pytest.raises(KeyboardInterrupt):
        again()
    monkeypatch.setattr(Loop, "make_step", make_step)
    assert again().metrics == expected.metrics


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.quantize=int4"], r"model.quantize: 'int4', allowed: int8, nf4, null"),
        (
            ["model.quantize=nf4", "variant=full"],
            r"^model.quantize: nf4 with full, allowed: null; it trains every weight$",
        ),
        (["model.quantize=nf4", "variant=peft_lora"], r"targets: .* is in nf4, not for PEFT's layers"),
    ],
)
def test_what_cannot_be_is_refused_before_any_weight_is_loaded(more, message, llama, tables, tmp_path):
    with pytest.raises(ConfigError, match=message):
        assemble.check(plan(composed([*overrides(llama, tmp_path), *tables["response"], *more])).config)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_exported_it_computes_the_same(to, trained, tmp_path, capsys):
    from weights.cli import main

    record = trained("response", "model.quantize=nf4")
    folder = tmp_path / "runs" / "test" / record.run_id
    assert main(["export", str(folder), "--to", to]) == 0
    report = json.loads((folder / "export" / to / "handover.json").read_text())
    assert report["base"]["quantize"] == "nf4" and report["check"]["largest_difference"] < 1e-4
    assert "nf4" in capsys.readouterr().out


def test_shards_are_refused(llama, tables, tmp_path):
    config = composed([*overrides(llama, tmp_path), *tables["text"], "model.quantize=nf4", "machine.fsdp=true"])
    with pytest.raises(ConfigError, match=r"machine.fsdp: true with model.quantize: nf4, allowed: false"):
        assemble.settings(config)


def test_a_model_has_the_numbers_that_transformers_loads_in_nf4(tmp_path):
    import transformers

    folder = language.make(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
    )
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(folder, quantization_config=how, dtype=torch.float32).eval()
    ours = backbone.as_loaded(folder, Architecture("AutoModelForCausalLM"), folder, "float32", "nf4")
    ids = torch.arange(8)[None]
    found, right = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    whole = auto.from_pretrained(folder).eval()(input_ids=ids).logits
    assert (whole - right).abs().max() > 0.1
