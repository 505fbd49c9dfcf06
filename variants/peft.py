"""The bridge: any method of Hugging Face PEFT, with any of its options, as a variant.

    variant=peft variant.method=adalora +variant.options.init_r=12 +variant.options.target_r=8

PEFT is the baseline that every reader knows; here it runs in the same trainer, with the same
head, counted in the same way.

Library   huggingface/peft ≥ 0.21.
Hooks     attach          wraps the model with `get_peft_model`
          penalty         whatever the method's own forward adds to a loss (AdaLoRA: orthogonality)
          on_update       `update_and_allocate`, for the methods that have it (AdaLoRA, AdaMSS), with
                          the step counted from 0 as PEFT's examples count
Differs   from using PEFT by hand in four ways. The head is trained by us, not copied into
          `modules_to_save`. `total_step` is filled in where a method asks for it. The allocator's
          scores are part of a checkpoint, which PEFT's own saving leaves out. AdaLoRA's `ranknum`, a
          constant, is kept from being trained above a backbone that is not float32.
Known     PEFT's AdaLoRA removes no rank: masked ones stay allocated (`effective_parameters` leaves
          them out). `target_r` equal to `init_r` stops it in the middle of a run (kthvalue of 0): refused here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from variants.core import targets
from variants.core.handover import CannotHandOver, quiet_peft
from variants.core.unread import Ranks, Unread, nonzero
from variants.core.variant import Step, Variant

# Attributes in which PEFT's allocators keep their averages, outside any state_dict of theirs.
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc", "exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")
# Options that a method's config takes over from LoRA's and that nothing of PEFT's (0.21) reads there.
UNREAD = {
    "adalora": (
        "r", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size", "use_bdlora",
        "arrow_config", "kasa_config", "megatron_config",
    )
}  # fmt: skip


@dataclass(kw_only=True)
class Peft(Variant):
    """A PEFT method.

    method: PEFT's name for it, in lower case (lora, adalora, ia3, vera, shira, prefix_tuning, …).
    options: fields of that method's config class.
    targets: "all-linear", names, or null for PEFT's own choice; it sets `target_modules` unless
        `options` does, and for methods that have no such field (prompt tuning) is left as it is.
    """

    name: str = ""
    method: str = "lora"
    targets: Sequence[str] | str | None = "all-linear"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._total_steps: int | None = None
        self._peft: Any = None
        self._started = False  # whether an optimizer step has been made
        config_class = self._config_class()
        allowed = {f.name for f in dataclasses.fields(config_class) if f.init}
        for option in self.options:
            if option not in allowed:
                raise ValueError(f"options: {self.method} has no {option!r}, allowed: {', '.join(sorted(allowed))}")
        self._refuse_ignored(allowed)
        self.name = self.name or f"peft-{self.method}"

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"method": "lora", "options": {"r": 2}},
            {"method": "adalora", "options": {"init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 2, "deltaT": 1}},
        ]

    def _refuse_ignored(self, allowed: set[str]) -> None:
        """Raises `ValueError` for what PEFT would take and never look at."""
        chosen, own = self.targets not in ("all-linear", None), self.options.get("target_modules")
        if chosen and "target_modules" not in allowed:
            raise ValueError(f"targets: {self.targets!r}, allowed with method: {self.method}, which has none: null")
        if chosen and own is not None:
            raise ValueError(f"targets: {self.targets!r} with options.target_modules: {own!r}, allowed: one of the two")
        for option in ("layers_to_transform", "layers_pattern"):
            value = self.options.get(option)
            # Where every layer is named in full, PEFT looks no further.
            if value is not None and self.targets is not None and own is None:
                raise ValueError(f"options.{option}: {value!r}, allowed with targets: null alone; targets name layers")
        for option in UNREAD.get(self.method, ()):
            if self.options.get(option):
                raise ValueError(f"options.{option}: {self.options[option]!r}, allowed: none; {self.method} ignores it")
        start = self.options.get("init_lora_weights", True)
        if self.method == "adalora" and not isinstance(start, bool):
            raise ValueError(f"options.init_lora_weights: {start!r}, allowed: true, false; adalora has one start")

    def plan(self, total_steps: int) -> None:
        self._total_steps = total_steps
        config = self._config([])
        start, target = getattr(config, "init_r", None), getattr(config, "target_r", None)
        if start is not None and target is not None and target >= start:
            raise ValueError(f"options.target_r: {target}, allowed: below init_r, {start}; PEFT would stop in mid-run")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._target_modules(model, head)

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        chosen = self.targets == targets.ALL_LINEAR and self._target_modules(model, head)
        return targets.not_linear(model, head) if chosen else {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        import peft

        config = self._config(self._target_modules(model, head))
        try:
            with quiet_peft():
                self._peft = peft.get_peft_model(model, config)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.name}: PEFT refuses: {' '.join(str(error).split())}") from error
        for name, parameter in self._peft.named_parameters():
            if ".ranknum." in name:
                # A constant of AdaLoRA's; PEFT makes it trainable where the base is not float32.
                parameter.requires_grad_(False)
            if targets.inside(name, head) and ".original_module." not in name:
                parameter.requires_grad_(True)
        return self._peft

    def penalty(self) -> torch.Tensor | None:
        tuner = self._tuner()
        if not hasattr(self._peft.peft_config["default"], "orth_reg_weight"):
            return None  # AdaLoRA's is the one tuner of PEFT's that adds to the loss
        # The tuner's forward adds its regulariser to the loss that the model returns: a model
        # that returns a loss of zero leaves exactly that.
        model = tuner.model
        zero = torch.zeros((), device=next(model.parameters()).device)
        model.forward = lambda: SimpleNamespace(loss=zero)
        try:
            loss = tuner().loss
        finally:
            del model.forward
        return loss if loss.requires_grad else None

    def on_update(self, step: Step) -> None:
        tuner = self._tuner()
        self._started = True
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step.index - 1)

    def is_final_form(self, step: Step) -> bool:
        config = self._peft.peft_config["default"]
        # At the last step whatever PEFT has allocated is final, also where tfinal is 0, its default.
        return step.index >= step.total or not hasattr(config, "tfinal") or step.index - 1 >= step.total - config.tfinal

    def ranks(self) -> dict[str, int]:
        return self.ranks_later().read()

    def ranks_later(self) -> Ranks:
        found: dict[str, int | Unread] = {}
        for name, module in self._peft.named_modules():
            if hasattr(module, "lora_E"):
                e = module.lora_E["default"]
                # All zero is how it starts; a module can only lose all its ranks at a mask.
                found[name] = Unread(e.flatten(), nonzero) if self._started else len(e)
            elif isinstance(getattr(module, "r", None), dict) and "default" in module.r:
                found[name] = int(module.r["default"])
        return Ranks({name.removeprefix("base_model.model."): rank for name, rank in found.items()})

    def effective_parameters(self) -> int | None:
        masked = 0
        found = False
        for module in self._peft.modules():
            if hasattr(module, "lora_E"):
                found = True
                e, a, b = (getattr(module, f"lora_{part}")["default"] for part in "EAB")
                masked += int((e == 0).sum()) * (1 + a.shape[1] + b.shape[0])
        if not found:
            return None
        trained = sum(p.numel() for n, p in self._peft.named_parameters() if "lora_" in n and p.requires_grad)
        return trained - masked

    def state_dict(self) -> dict[str, Any]:
        if not hasattr(self._tuner(), "update_and_allocate"):
            return {}
        scores = {
            owner: {name: getattr(thing, name) for name in _SCORES if hasattr(thing, name)}
            for owner, thing in self._score_owners()
        }
        frozen = [name for name, parameter in self._peft.named_parameters() if not parameter.requires_grad]
        pattern = getattr(self._tuner().peft_config["default"], "rank_pattern", None)
        return {"scores": scores, "frozen": frozen, "rank_pattern": pattern}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self._started = True
        owners = dict(self._score_owners())
        for owner, attributes in state["scores"].items():
            for name, value in attributes.items():
                setattr(owners[owner], name, value)
        frozen = set(state["frozen"])
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(name not in frozen)
        if state["rank_pattern"] is not None:
            self._tuner().peft_config["default"].rank_pattern = state["rank_pattern"]

    def merged(self, model: nn.Module) -> nn.Module:
        tuner = self._tuner()
        if tuner is None:
            raise CannotHandOver(f"PEFT can't merge {self.method}: it is in no layer's weight; allowed: peft")
        try:
            return tuner.merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise CannotHandOver(f"PEFT can't merge {self.method}: {' '.join(str(error).split())}") from error

    def to_peft(self, model: nn.Module, head: Sequence[str] = ()) -> Any:
        from peft.utils import set_additional_trainable_modules

        config = self._peft.peft_config["default"]
        config.modules_to_save = list(head)
        set_additional_trainable_modules(self._peft, config, None, "default")
        return self._peft

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        with self._peft.disable_adapter():
            yield

    def _config_class(self) -> type:
        import peft

        classes = {kind.value.lower(): cls for kind, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if self.method not in classes:
            raise ValueError(f"method: {self.method!r}, allowed: {', '.join(sorted(classes))}")
        return classes[self.method]

    def _config(self, target_modules: list[str]) -> Any:
        config_class = self._config_class()
        allowed = {f.name for f in dataclasses.fields(config_class)}
        options = dict(self.options)
        if "target_modules" in allowed and target_modules:
            options.setdefault("target_modules", target_modules)
        if "total_step" in allowed and self._total_steps is not None:
            options.setdefault("total_step", self._total_steps)
        if self._is_prompt(config_class):
            options.setdefault("task_type", "SEQ_CLS")  # the wrapper that puts the prompt before the input
        try:
            return config_class(**options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"options: PEFT's {self.method} refuses: {' '.join(str(error).split())}") from error

    def _target_modules(self, model: nn.Module, head: Sequence[str]) -> list[str]:
        if self.targets is None or "target_modules" in self.options:
            return []
        return list(targets.select(model, self.targets, head=head))

    @staticmethod
    def _is_prompt(config_class: type) -> bool:
        import peft

        return issubclass(config_class, peft.PromptLearningConfig)

    def _tuner(self) -> Any:
        """PEFT's model of the method, or None for prompt learning, which has none."""
        tuner = self._peft.base_model
        return tuner if isinstance(tuner, peft_base_tuner()) else None

    def _score_owners(self) -> Iterator[tuple[str, Any]]:
        tuner = self._tuner()
        if hasattr(tuner, "rankallocator"):
            yield "rankallocator", tuner.rankallocator
        for name, module in tuner.named_modules():
            if any(name in _SCORES for name in vars(module)):
                yield name, module


def peft_base_tuner() -> Any:
    from peft.tuners.tuners_utils import BaseTuner

    return BaseTuner
