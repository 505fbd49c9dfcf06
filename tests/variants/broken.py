"""Variants each of which breaks one promise of the contract."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core.adapters.adapter import LowRank
from variants.lora import LoRA


@dataclass(kw_only=True)
class Unlike(LoRA):
    """LoRA, of which each of the classes below breaks one promise."""


class NoDocstring(Unlike):
    pass


NoDocstring = dataclass(kw_only=True)(NoDocstring)  # as it is done, and by it gets a docstring of a kind


@dataclass(kw_only=True)
class HasAFieldThatNoSettingTries(Unlike):
    """Has an option, and LoRA's test_params."""

    extra: int = 1


class TakesAnything(Unlike):
    """Accepts what it does not know."""

    def __init__(self, **settings):
        super().__init__(**{name: value for name, value in settings.items() if name == "rank"})


class ForgotTheDecorator(Unlike):
    """Has an option that is no field."""

    extra: int = 1


@dataclass(kw_only=True)
class KeepsAnotherValue(Unlike):
    """Trains with half the rank that it was given."""

    def __post_init__(self):
        super().__post_init__()
        self.rank = self.rank // 2


@dataclass(kw_only=True)
class ActsInSecret(Unlike):
    """Has a hook that its card does not name."""

    def on_update(self, step):
        pass


@dataclass(kw_only=True)
class ActsInTheForwardPass(Unlike):
    """Shrinks B whenever the model is called."""

    def attach(self, model, head=()):
        model = super().attach(model, head)

        def shrink(module, arguments):
            if module.training:
                for adapter in self.adapters.values():
                    adapter.B.data *= 0.9

        model.register_forward_pre_hook(shrink)
        return model


@dataclass(kw_only=True)
class StartsElsewhere(Unlike):
    """Starts with ΔW ≠ 0."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        nn.init.ones_(adapter.B)
        return adapter


@dataclass(kw_only=True)
class MovesTheBase(Unlike):
    """Writes into the frozen weight."""

    def on_update(self, step):
        with torch.no_grad():
            next(iter(self.adapters.values())).weight.mul_(1.0001)


@dataclass(kw_only=True)
class NeverLearns(Unlike):
    """Takes its own gradients away, and the head's."""

    def on_gradients(self, step):
        for group in step.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


@dataclass(kw_only=True)
class Miscounts(Unlike):
    """Forgets a factor."""

    def closed_form(self):
        return super().closed_form() // 2


class CountsItsFirstRank(LowRank):
    def closed_form(self):
        return 2 * self.cost


@dataclass(kw_only=True)
class LeavesItsDecayOpen(Unlike):
    """Leaves it to the shape of B whether B decays."""

    def decays(self, name):
        return None if name.endswith(".B") else True


@dataclass(kw_only=True)
class GrowsWhereNothingDecays(Unlike):
    """Makes B anew, and enters it in the group of A, which does not decay."""

    def decays(self, name):
        return name.endswith(".B")

    def on_update(self, step):
        if step.index != 3:
            return
        group_of = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
        for adapter in self.adapters.values():
            old = adapter.B
            adapter.B = nn.Parameter(old.detach().clone())
            group_of[id(old)]["params"] = [p for p in group_of[id(old)]["params"] if p is not old]
            group_of[id(adapter.A)]["params"].append(adapter.B)
            step.optimizer.state.pop(old)


@dataclass(kw_only=True)
class Prunes(Unlike):
    """Removes ranks after step 6, and may leave something behind."""

    adapter_class: Any = LowRank
    optimizer: bool = True

    def build(self, name, layer):
        return self.adapter_class(layer, self.rank, 1.0)

    def on_update(self, step):
        if step.index == 6:
            for adapter in self.adapters.values():
                adapter.keep(torch.tensor([0]), step.optimizer if self.optimizer else None)


@dataclass(kw_only=True)
class SaysMoreThanThereIs(Unlike):
    """Counts parameters in use that are not there."""

    def effective_parameters(self):
        return super().effective_parameters() + 1


@dataclass(kw_only=True)
class GrowsInBetween(Unlike):
    """Has more ranks from step 4 to step 7 than it starts or ends with."""

    def on_update(self, step):
        for adapter in self.adapters.values():
            adapter.reshape(self.rank + (4 <= step.index < 8))


@dataclass(kw_only=True)
class MissesItsBudget(Unlike):
    """Chooses its ranks for another budget than it was given."""

    by: int = 0

    def check(self, model, head=()):
        self.budget += self.by
        super().check(model, head)
        self.budget -= self.by


@dataclass(kw_only=True)
class NeverFinal(Unlike):
    """Has no model that may be handed over."""

    def is_final_form(self, step):
        return False


@dataclass(kw_only=True)
class ReportsTooMuch(Unlike):
    """Says a rank that ΔW does not have."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data[1] = adapter.A.data[0]
        adapter.A.register_hook(lambda gradient: gradient.mean(0, keepdim=True).expand_as(gradient).contiguous())
        return adapter


@dataclass(kw_only=True)
class ReportsStaleRanks(Prunes):
    """Says the ranks of the start after every step."""

    def attach(self, model, head=()):
        model = super().attach(model, head)
        self._ranks_at_start = super().ranks()
        return model

    def ranks(self):
        return self._ranks_at_start


@dataclass(kw_only=True)
class CanNotBeDisabled(Unlike):
    """Goes on within disabled()."""

    def disabled(self):
        return contextlib.nullcontext()


class MergesAnother(LowRank):
    def delta(self):
        return super().delta() * 1.001


@dataclass(kw_only=True)
class MergesElsewhere(Unlike):
    """Has a ΔW that is not what its layers compute."""

    def build(self, name, layer):
        return MergesAnother(layer, self.rank, 1.0)


@dataclass(kw_only=True)
class ForgetsItsState(Unlike):
    """Scales its update by a counter that it does not save."""

    steps: int = field(default=0, init=False)

    def on_update(self, step):
        self.steps += 1
        for adapter in self.adapters.values():
            adapter.scale = 1 + 0.1 * self.steps


@dataclass(kw_only=True)
class LosesItsState(Unlike):
    """Saves an average that it does not take up again, so that only the next allocation would tell."""

    mean: float = field(default=0.0, init=False)

    def on_update(self, step):
        self.mean += 0.5

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        pass


@dataclass(kw_only=True)
class DrawsFromTheClock(Unlike):
    """Is another one each time."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data.normal_(generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return adapter


class CountsCalls(LowRank):
    """Has a scale that follows how often it was called."""

    counts_training = True

    def forward(self, x):
        if self.training == self.counts_training:
            self.scale *= 1.01
        return super().forward(x)


class CountsEvaluations(CountsCalls):
    counts_training = False


@dataclass(kw_only=True)
class Counts(Unlike):
    """Notices what should leave no trace."""

    adapter_class: Any = CountsCalls

    def build(self, name, layer):
        return self.adapter_class(layer, self.rank, 1.0)


class RemembersEvaluations(LowRank):
    evaluated = 0

    def forward(self, x):
        self.evaluated += not self.training
        return super().forward(x)


@dataclass(kw_only=True)
class ActsOnEvaluations(Unlike):
    """Moves by what evaluation since the last step has left in memory, and forgets it."""

    def build(self, name, layer):
        return RemembersEvaluations(layer, self.rank, 1.0)

    @torch.no_grad()
    def on_update(self, step):
        for adapter in self.adapters.values():
            adapter.B.mul_(1 + 0.1 * adapter.evaluated)
            adapter.evaluated = 0


@dataclass(kw_only=True)
class TakesTheLastBatch(Unlike):
    """Scales its update by the gradient of one batch, where a step may have more."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.B.register_hook(lambda gradient: setattr(adapter, "seen", gradient.norm()))
        return adapter

    def on_update(self, step):
        for adapter in self.adapters.values():
            adapter.scale = 1 + float(adapter.seen)


@dataclass(kw_only=True)
class ScoresInTheBackwardPass(Unlike):
    """Has an average of gradients that takes them before anybody knows whether they are finite."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        self.mean = torch.zeros(())
        adapter.B.register_hook(lambda gradient: setattr(self, "mean", 0.9 * self.mean + gradient.sum()))
        return adapter

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


@dataclass(kw_only=True)
class InHalfPrecision(Unlike):
    """Trains its factors in the backbone's precision."""

    def build(self, name, layer):
        return super().build(name, layer).to(layer.weight.dtype)


class Doubled(LowRank):
    """Hands over another ΔW than it trains."""

    def as_product(self):
        return self.A.detach(), 2 * self.scale * self.B.detach()


@dataclass(kw_only=True)
class HandsOverAnother(Unlike):
    """Its adapters do."""

    def build(self, name, layer):
        return Doubled(layer, self.rank, 1.0)


@dataclass(kw_only=True)
class RefusesLate(Unlike):
    """Refuses an Embedding when it has been loaded."""

    message: str = "targets: an Embedding can't be adapted"

    def build(self, name, layer):
        if isinstance(layer, nn.Embedding):
            raise ValueError(self.message)
        return super().build(name, layer)


@dataclass(kw_only=True)
class RefusesEarly(RefusesLate):
    """Refuses an Embedding before."""

    def check(self, model, head=()):
        super().check(model, head)
        for name, layer in self.select(model, head).items():
            self.build(name, layer)


@dataclass(kw_only=True)
class CanNotLookUp(Unlike):
    """Computes for row numbers what it does not merge."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        if isinstance(layer, nn.Embedding):
            adapter.layer_kind.project = lambda x, a: nn.functional.embedding(x, a.T) * 2
        return adapter
