"""A step reads no number off the device but one: the gradients' norm, which says whether the step counts.

A step in which a method decides on ranks, entries or masks reads a little more, as much for many layers as for few.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.every_method import FIRST, LAST, LOOP, acts_in_steps, class_of
from trainer.loop.loop import Loop
from trainer.runs import assemble
from variants.core.adapters import sparse_delta
from variants.core.kernels import dropout
from variants.core.variant import field_names

pytestmark = pytest.mark.slow

# What makes Python wait for the device, with or without a GPU: numbers, and shapes that numbers decide.
READS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten._unique2.default: "unique",
    torch.ops.aten.unique_dim.default: "unique",
    torch.ops.aten.unique_consecutive.default: "unique",
    torch.ops.aten.isin.Tensor_Tensor: "isin",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
    torch.ops.aten.bincount.default: "bincount",
}
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
TRANSFERS = ("tolist", "cpu", "numpy", "__array__")  # these pass through no operation where the tensor is on the host


class Reading(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._patches = pytest.MonkeyPatch()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.found[READS[func]] += 1
        if func in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.found["mask as an index"] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        for name in TRANSFERS:
            self._patches.setattr(torch.Tensor, name, self._counting(name, getattr(torch.Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error):
        self._patches.undo()
        return super().__exit__(*error)

    def _counting(self, name, method):
        def counted(tensor, *arguments, **keywords):
            self.found[name] += 1
            return method(tensor, *arguments, **keywords)

        return counted


@pytest.fixture
def reads_of_a_step(tiny_overrides, configured, tmp_path, monkeypatch):
    """What each step of a run's training reads, between its first hook and its last."""
    steps: list[Counter[str]] = []
    make, end = Loop.make_step, Loop.end_step
    modes: list[Reading] = []

    def make_step(self, index, batches):
        modes.append(Reading())
        modes[-1].__enter__()
        make(self, index, batches)

    def end_step(self, index):
        end(self, index)
        modes[-1].__exit__(None, None, None)
        steps.append(modes[-1].found)

    # On a device torch draws dropout's bits there, and finds the largest entries.
    monkeypatch.setattr(dropout, "_by_numpy", lambda x: False)
    monkeypatch.setattr(sparse_delta, "_by_numpy", lambda scores: False)
    monkeypatch.setattr(Loop, "make_step", make_step)
    monkeypatch.setattr(Loop, "end_step", end_step)

    def found(*overrides: str) -> list[Counter[str]]:
        steps.clear()
        context = assemble.check(
            configured([*tiny_overrides, *LOOP, "machine.log_every=1000", "train.eval_every=1000", *overrides])
        )
        assemble.loop(context, assemble.load(context), tmp_path, torch.device("cpu")).fit()
        return steps[:]

    return found


OURS, THEIRS = 1, 1  # the gradients' norm; transformers looks whether the batch has any padding
DECISION = 4  # more in a step that decides: scores; whether they are finite; how many fall into which layer; ranks
DRAWN = {"dylora": 1}  # its rank, a number of the host's generator


# PEFT's own AdaLoRA reads its scores layer by layer when it masks, in its own code.
ONE_OF_EACH = {name: run for name, run in FIRST.items() if name != "peft_adalora"}
# ALoRA's decision takes a forward pass for each component, and transformers looks for padding in each pass.
PASSES = {"alora"}
RUNS = {
    key: run
    for key, run in LAST.items()
    if run[0] in ONE_OF_EACH and run[0] not in PASSES and acts_in_steps(class_of(run[0]))
}
# Steps of these between the first and the last in which something is decided.
DECISIONS = {"_template_adaptive": 7, "adalora": 3, "elalora": 3, "increlora": 4, "rosa": 1, "sparse": 7, "spiel": 3}
DECISIONS |= {
    "allocated": 3,
    "alora": 3,
    "aroma": 5,
    "para": 3,
    "diff_pruning": 1,
    "salora": 1,
    "dynamic_dora": 4,
    "flexlora": 2,
    "igulora": 6,
    "l1ra": 5,
    "lift": 3,
    "losia": 3,
    "lota": 1,
    "lt_sft": 1,
    "masked": 4,
    "smt": 1,
}


def usual(name: str) -> Counter[str]:
    """What a step reads in which nothing is decided."""
    return Counter(item=OURS + THEIRS + DRAWN.get(name, 0))


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_a_step_that_decides_nothing_waits_for_the_device_once(name, reads_of_a_step):
    first, *between, last = reads_of_a_step(*ONE_OF_EACH[name][1])
    decided = [step for step in between if step != usual(name)]
    assert len(decided) == DECISIONS.get(name, 0)
    assert last.total() > first.total()  # the last step is logged


@pytest.mark.parametrize("key", sorted(RUNS))
def test_no_step_reads_more_for_many_layers_than_for_few(key, reads_of_a_step):
    name, overrides = RUNS[key]
    many = [o for o in overrides if not o.startswith("variant.targets=")]
    if name == "increlora":
        many.append("variant.top=6")  # or the target is out of reach with so many
    fewer = "[intermediate.dense]" if name == "aflora" else "[query,value]"  # it decides nothing for square matrices
    few = [o if not o.startswith("variant.budget=") else "variant.budget=400" for o in many]
    if "targets" in field_names(class_of(name)):
        few.append(f"variant.targets={fewer}")  # a third of them, or a sixth
    most = {}
    for layers, settings in {"few": few, "many": many}.items():
        *steps, _ = reads_of_a_step(*settings)
        most[layers] = max(steps, key=Counter.total)
    assert most["few"] == most["many"] and most["many"].total() <= usual(name).total() + DECISION


@pytest.mark.parametrize("method", [("sora",), ("adalora", "variant.profile=released")], ids=" ".join)
def test_a_step_that_is_logged_brings_the_ranks_and_the_parameters_of_all_layers_over_in_one_go_each(
    method, reads_of_a_step
):
    for targets in ("query", "query,value"):
        name, *settings = method
        first, *_ = reads_of_a_step(f"variant={name}", *settings, f"variant.targets=[{targets}]", "machine.log_every=1")
        assert first["cpu"] == 2


def test_what_would_be_noticed():
    values = torch.tensor([1.0, 0.0, 2.0])
    with Reading() as reading:
        bool(values.any()), float(values[0]), values.tolist(), values.cpu(), values.nonzero()
        values[values > 0], values.isfinite().all().item(), torch.isin(values, values), values.unique()
        values.masked_fill(values > 0, 0.0), values.topk(2), torch.where(values > 0, values, 0.0)
    assert reading.found == {
        "item": 3,
        "tolist": 1,
        "cpu": 1,
        "nonzero": 1,
        "mask as an index": 1,
        "isin": 1,
        "unique": 1,
    }
