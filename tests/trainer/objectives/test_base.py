"""The untuned model as a run: no step, nothing trained, and the metrics of the model as it is."""

from __future__ import annotations

import pytest
import torch

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives.conftest import overrides
from trainer.errors import ConfigError
from trainer.runs.dry_run import predict
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_the_record_says_that_nothing_was_trained(checkpoint, trained, tmp_path):
    record = trained("text", "variant=base", f"train.checkpoint={checkpoint}")
    assert (record.status, record.variant) == ("done", "base")
    assert (record.steps.total, record.steps.done, record.metric.step) == (0, 0, 0)
    assert (record.params.adapter_start, record.params.adapter_end, record.params.head) == (0, 0, 0)
    assert record.params.effective == record.params.closed_form == 0 and record.method == {}
    assert record.time.steps_per_second is None and record.time.tokens_per_second is None
    with opened(folder_of(record, tmp_path)) as run:
        plainly = run.context.loaded_backbone().model.state_dict()
        assert all(torch.equal(tensor, plainly[name]) for name, tensor in run.model.state_dict().items())


def test_it_is_what_a_method_starts_from(trained):
    base = trained("text", "variant=base")
    still = trained("text", "variant=lora", "optim.lr=1e-30")
    assert base.metrics["perplexity"] == pytest.approx(still.metrics["perplexity"], rel=1e-6)
    assert base.metrics["perplexity"] > trained("text", "variant=lora").metrics["perplexity"]


def test_a_dry_run_predicts_no_step(llama, tables, tmp_path):
    found = predict(plan(composed([*overrides(llama, tmp_path), *tables["text"], "variant=base"])))
    assert (found.steps, found.adapter, found.head, found.gradients, found.optimizer) == (0, 0, 0, 0, 0)
    assert found.total > 0 and found.weights > 0


def test_a_head_that_was_only_drawn_is_not_evaluated(tiny_overrides):
    from trainer.runs import assemble

    with pytest.raises(ConfigError, match=r"variant.name: 'base' where the task's head \(classifier, .*\) is new"):
        assemble.check(composed([*tiny_overrides, "variant=base"]))
