"""What a benchmark calls a step is a training step, and what it says of times is arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from benchmarks import stepper
from benchmarks.stepper import FEWEST, Stepper, Times, in_turn
from tests.classifiers import pristine
from variants.adalora import AdaLoRA
from variants.full import Full
from variants.head import Head
from variants.lora import LoRA

CPU = torch.device("cpu")
FORWARD, BACKWARD, OPTIMIZER = 100.0, 200.0, 400.0  # seconds of a made-up clock


@pytest.fixture(scope="module")
def source(tiny_model):
    return pristine(tiny_model, 2)


def moved(variant, source, steps: int = 2) -> set[str]:
    """Names of the parameters that the steps have moved, without what a wrapped layer adds to them."""
    taken = Stepper(source, variant, 4, 6, CPU)
    before = {name: p.detach().clone() for name, p in taken.model.named_parameters()}
    for _ in range(steps):
        taken.step()
    return {name for name, p in taken.model.named_parameters() if not torch.equal(p, before[name])}


def test_a_step_of_the_floor_moves_the_head_alone(source):
    assert {name.split(".")[0] for name in moved(Head(), source)} == {"classifier", "bert"}
    assert {name for name in moved(Head(), source) if name.startswith("bert")} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }


def test_a_step_of_the_floor_goes_back_through_the_whole_backbone(source):
    taken, seen = Stepper(source, Head(), 4, 6, CPU), []

    def watch(module, inputs, output):
        output.register_hook(lambda gradient: seen.append(gradient.abs().sum()))

    taken.model.bert.embeddings.register_forward_hook(watch)
    taken.step()
    assert len(seen) == 1 and seen[0] > 0


def test_a_step_of_a_method_moves_its_adapters_and_the_head(source):
    names = moved(LoRA(rank=2), source)
    assert {name.rpartition(".")[2] for name in names if ".encoder." in name} == {"A", "B"}
    assert sum(name.endswith(".B") for name in names) == 2 * 6, "of both blocks' six linear layers"
    assert "classifier.weight" in names


def test_a_step_of_full_fine_tuning_moves_every_layer(source):
    assert sum(".encoder." in name and name.endswith(".weight") for name in moved(Full(), source)) == 2 * 8


def test_a_step_leaves_no_gradient_and_counts_up(source):
    taken = Stepper(source, AdaLoRA(rank=2, target_rank=1, final_steps=100), 4, 6, CPU)
    assert [taken.step() and taken.index for _ in range(3)] == [1, 2, 3]
    assert all(p.grad is None for p in taken.model.parameters())


def test_its_texts_are_of_the_models_own_words(source):
    taken = Stepper(source, LoRA(rank=2), 64, 20, CPU)
    assert taken.inputs["input_ids"].shape == taken.inputs["attention_mask"].shape == (64, 20)
    assert int(taken.inputs["input_ids"].max()) == source.model.config.vocab_size - 1


@dataclass(kw_only=True)
class Slow(LoRA):
    """LoRA whose hooks take 1, 2, 4 and 8 seconds."""

    clock: list[float]

    def wait(self, seconds: float) -> None:
        self.clock[0] += seconds

    def on_step_begin(self, step):
        self.wait(1)

    def penalty(self):
        self.wait(2)

    def on_gradients(self, step):
        self.wait(4)

    def on_update(self, step):
        self.wait(8)


def test_the_hooks_count_as_part_of_a_step_and_alone(source, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(Stepper, "_now", lambda self: clock[0])
    taken = Stepper(source, Slow(rank=2, clock=clock), 4, 6, CPU)
    model, optimize = taken.model.forward, taken.optimizer.step

    def waiting(call, seconds):
        def called(*args, **named):
            clock[0] += seconds
            return call(*args, **named)

        return called

    monkeypatch.setattr(taken.model, "forward", waiting(model, FORWARD))
    monkeypatch.setattr(taken.optimizer, "step", waiting(optimize, OPTIMIZER))
    taken.model.classifier.weight.register_hook(lambda gradient: taken.variant.wait(BACKWARD))
    whole, hooks = taken.step()
    assert whole == 1000 * (FORWARD + BACKWARD + OPTIMIZER + 1 + 2 + 4 + 8)
    assert hooks == 1000 * (1 + 4 + 8), "the penalty is part of the forward pass"


def test_what_a_method_saves_for_backward_is_counted_of_one_step(source):
    lora, floor = (Stepper(source, variant, 4, 6, CPU) for variant in (LoRA(rank=2), Head()))
    first = lora.saved_bytes()
    lora.step()
    assert lora.saved_bytes() == first > floor.saved_bytes() > 0
    assert all(p.grad is None for p in lora.model.parameters())


class Scripted:
    """Takes steps of given milliseconds, of which hooks are a tenth; the first two are to warm up."""

    def __init__(self, order: list[str], name: str, times: list[float]) -> None:
        self.order, self.name, self.times = order, name, iter([1e6, 1e6, *times])

    def step(self) -> tuple[float, float]:
        self.order.append(self.name)
        taken = next(self.times)
        return taken, taken / 10


def scripted(**times: list[float]) -> tuple[list[str], dict[str, Scripted]]:
    order: list[str] = []
    return order, {name: Scripted(order, name, values) for name, values in times.items()}


def test_methods_take_their_steps_in_turn_after_two_to_warm_up():
    order, steppers = scripted(floor=[1.0] * 3, lora=[2.0] * 3)
    in_turn(steppers, 3)
    assert order == ["floor", "floor", "lora", "lora"] + ["floor", "lora"] * 3


def test_times_are_medians_quartiles_and_the_median_of_the_differences_round_by_round():
    _, steppers = scripted(floor=[10, 20, 90, 20, 10, 10, 20], lora=[13, 22, 95, 28, 17, 10, 21])
    found = in_turn(steppers, 7)
    # Differences are 3, 2, 5, 8, 7, 0, 1; the medians themselves differ by 2 alone.
    assert found["lora"] == Times(
        ms=21, ms_low=13, ms_high=28, ms_least=10, hooks=pytest.approx(2.1), over_floor=3, rounds=7
    )
    assert found["floor"] == Times(20, 10, 20, 10, 2, 0, 7)


def test_no_round_begins_once_the_time_is_over_but_a_few_are_made(monkeypatch):
    _, steppers = scripted(floor=[1.0] * 30, lora=[2.0] * 30)
    clock = iter(range(100))
    monkeypatch.setattr(stepper.time, "perf_counter", lambda: next(clock))
    assert in_turn(steppers, 30, until=3.5)["lora"].rounds == FEWEST + 4  # which begin at 0, 1, 2 and 3
    _, steppers = scripted(floor=[1.0] * 30, lora=[2.0] * 30)
    assert in_turn(steppers, 30, until=-1.0)["lora"].rounds == FEWEST
