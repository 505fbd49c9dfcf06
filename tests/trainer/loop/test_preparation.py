"""Passes before the first step: made once, of a new run; their cost is recorded, and a resumed run keeps the result."""

from __future__ import annotations

import pytest

from tests.conftest import folder_of
from trainer.errors import ConfigError
from trainer.loop.checkpoints import Checkpoints
from variants.core import state_files
from variants.gora import GoRA
from variants.testing.case import same

RUN = ["train.max_steps=6", "variant=gora", "variant.rank=4", "variant.min_rank=1", "variant.max_rank=8"]
RUN += ["variant.batches=3"]


def state(record, tmp_path):
    return state_files.load(folder_of(record, tmp_path) / "adapter" / "state")


def test_the_record_has_the_cost_and_the_parameters_after_the_passes(carry_out, tmp_path) -> None:
    record = carry_out(*RUN)
    assert record.steps.before == 3
    assert record.time.before > 0 and record.memory.peak_rss_before > 0
    ranks = state(record, tmp_path)["variant"]["ranks"]
    assert len(set(ranks.values())) > 1
    assert record.rank.start == record.rank.end == sum(ranks.values())
    assert record.params.adapter_start == record.params.closed_form == record.params.adapter_end
    plain = carry_out("train.max_steps=1", "variant=lora").params
    assert record.params.total - record.params.adapter_start == plain.total - plain.adapter_start


def test_a_method_without_passes_has_no_such_numbers(carry_out) -> None:
    record = carry_out("train.max_steps=1")
    assert record.steps.before is record.time.before is record.memory.peak_rss_before is None


def test_a_resumed_run_makes_no_pass_and_ends_with_the_same_bits(carry_out, tmp_path, monkeypatch) -> None:
    whole = carry_out(*RUN)
    write, hook, made = Checkpoints.write, GoRA.before_training, []

    def write_and_die(self, step, tree):
        write(self, step, tree)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        carry_out(*RUN, "machine.save_every=2", "study=cut")
    monkeypatch.setattr(Checkpoints, "write", write)
    monkeypatch.setattr(GoRA, "before_training", lambda self, passes: made.append(hook(self, passes)))
    resumed = carry_out(*RUN, "machine.save_every=2", "study=cut")
    assert not made and resumed.metric.value == whole.metric.value
    assert resumed.steps.before == 3 and resumed.params.adapter_start == whole.params.adapter_start
    assert same(state(resumed, tmp_path)["parameters"], state(whole, tmp_path)["parameters"])


def test_a_run_that_starts_from_another_keeps_its_decisions_and_makes_no_pass(carry_out, tmp_path) -> None:
    first = carry_out(*RUN)
    second = carry_out(*RUN, f"init_from={folder_of(first, tmp_path)}", "study=on")
    assert second.steps.before is None
    assert state(second, tmp_path)["variant"] == state(first, tmp_path)["variant"]


def test_more_rows_than_there_are_are_refused(carry_out, monkeypatch) -> None:
    monkeypatch.setattr(GoRA, "before_training", lambda self, passes: passes.rows(10**6))
    with pytest.raises(ConfigError, match=r"variant.samples: 1000000, allowed: at most the \d+ training rows"):
        carry_out(*RUN)
