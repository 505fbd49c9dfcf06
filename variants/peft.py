"""The bridge: the methods of Hugging Face PEFT, with their options, as a variant.

    variant=peft variant.method=adalora +variant.options.init_r=12 +variant.options.target_r=8
    variant=peft variant.method=ia3 variant.targets=null

PEFT is the common baseline; here it runs in the same trainer, with the same head, and is counted in the same way.

Library   huggingface/peft ≥ 0.21.
Family    library
Trains    as `method` says
Changes   as `method` says
Checked   PEFT by hand: test_peft test_adaloras_trajectory_is_that_of_peft_used_by_hand
Hooks     attach          wraps the model with `get_peft_model`
          penalty         the term that the method's own forward adds to a loss (AdaLoRA: orthogonality)
          on_update       calls `update_and_allocate` of methods that have it (AdaLoRA, AdaMSS), with
                          the step counted from 0 as in PEFT's examples
          on_train_end    raises if more is in use than the allocator's target
Decay     all parameters that PEFT trains decay, whatever their shape, except biases and norms, as in transformers'
          trainer.
Differs   from using PEFT directly in five ways. The head is trained by our trainer, not copied into
          `modules_to_save` (except for prompt methods, whose wrapper copies it). `total_step` is filled in for methods
          that need it. Checkpoints include the allocator's scores, which PEFT does not save. AdaLoRA's constant
          `ranknum` is not trained above a backbone that is not float32. If AdaLoRA's last pruning step was skipped,
          it is done in the next step.
Refused   options that PEFT accepts and ignores, options that need data, labels or another loop, and methods that can't
          work here: `variants.bridge` lists them with reasons.
Known     PEFT's AdaLoRA does not remove ranks: masked ones stay allocated (`effective_parameters` excludes them).
          AdaMSS freezes subspaces that still act (`effective_parameters` includes them).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from variants.bridge import budget, methods, options, wrapped
from variants.core import field_checks as fields
from variants.core import target_modules as targets
from variants.core.handover import CannotHandOver, order_sets, quiet_peft
from variants.core.out_of_memory import is_out_of_memory
from variants.core.quantized import Quantized
from variants.core.variant import Step, Variant, to_host

# Attributes with the averages of PEFT's allocators, which no state_dict includes.
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc", "exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")


@dataclass(kw_only=True)
class Peft(Variant):
    """A PEFT method.

    method: PEFT's name for it, in lower case (lora, adalora, ia3, vera, shira, prefix_tuning, …).
    options: fields of that method's config class.
    targets: "all-linear", names, or null for PEFT's own choice; it sets `target_modules` unless `options` does. Methods
        without that field (prompt tuning) ignore the default. Methods for other modules than linear layers, or for few
        of them, refuse "all-linear".
    """

    name: str = ""
    method: str = "lora"
    targets: Sequence[str] | str | None = "all-linear"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._total_steps: int | None = None
        self._peft: Any = None
        self._started = False  # whether the optimizer has taken a step
        self._task: str | None = None  # PEFT's name of the task, if `for_task` was called
        self._has_head = True
        self._trained: list[str] = []  # initially trained parameters outside the head
        self._kind = methods.known(self.method)
        usual = options.defaults(options.config_class(self.method))
        options.refuse_targets(self.method, self._kind, self.targets, self.options, "target_modules" in usual)
        options.refuse_options(self.method, self._kind, self.options, usual)
        # PEFT's annotation of initialisations is incomplete; `refuse_options` has all of them.
        typed = {name: value for name, value in self.options.items() if name != "init_lora_weights"}
        fields.check_types(options.config_class(self.method), typed, "options.")
        self.name = self.name or f"peft-{self.method}"

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"method": "lora", "options": {"r": 2}},
            {"method": "adalora", "options": {"init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 2, "deltaT": 1}},
        ]

    def plan(self, total_steps: int) -> None:
        self._total_steps = total_steps
        budget.refuse_schedule(self._config([]), total_steps)

    def for_task(self, peft_task: str | None) -> None:
        if self._kind.layers == "none" and peft_task is None:
            raise ValueError(
                f"method: {self.method}, allowed with this task and model: one that adapts layers; "
                "PEFT has no class that puts a prompt before all inputs of such a model"
            )
        self._task = peft_task

    def virtual_tokens(self) -> int:
        return self.options["num_virtual_tokens"] if self._kind.layers == "none" else 0

    def needs_cache(self) -> str | None:
        return f"method: {self.method}" if self._kind.needs_cache else None

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        names = self._target_modules(model, head)
        for name in names:
            if isinstance(layer := model.get_submodule(name), Quantized):
                raise ValueError(
                    f"targets: {name} is in {layer.how}, not for PEFT's layers; allowed: model.quantize=null"
                )
            if (groups := getattr(layer := model.get_submodule(name), "groups", 1)) != 1:
                what = f"{name} is a {type(layer).__name__} in groups ({groups})"
                raise ValueError(f"targets: {what}, which PEFT can't merge; allowed: one group")
        options.refuse_tokens(self.options, model)
        if names and self._total_steps is not None:
            budget.refuse_schedule(self._config(names), self._total_steps, len(names))

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        chosen = self.targets == targets.ALL_LINEAR and self._target_modules(model, head)
        return targets.not_linear(model, head) if chosen else {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        import peft

        names = self._target_modules(model, head)
        self._has_head = bool(head)
        config = self._config(names)
        with options.refuse_ignored(self.method):
            try:
                with quiet_peft():
                    self._peft = peft.get_peft_model(model, config)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                if self.targets is None and "specify `target_modules`" in str(error):
                    what = f"method: {self.method} on a model that PEFT has no choice of layers for"
                    raise ValueError(f"targets: null, allowed with {what}: names of modules") from error
                raise ValueError(f"{self.name}: PEFT refuses: {options.line(error)}") from error
        for name, parameter in self._peft.named_parameters():
            if ".ranknum." in name:
                # A constant of AdaLoRA; PEFT makes it trainable if the base is not float32.
                parameter.requires_grad_(False)
            if targets.inside(name, head):
                if ".original_module." not in name:
                    parameter.requires_grad_(True)
            elif parameter.requires_grad:
                self._trained.append(name)
        wrapped.refuse_changed(self.options, config)
        if (tuner := self._tuner()) is None:
            wrapped.refuse_model(self.method, self._peft, self.disabled())
        else:
            wrapped.refuse_layers(tuner, names, self.options, head)
        return self._peft

    def penalty(self) -> torch.Tensor | None:
        tuner = self._tuner()
        if not hasattr(self._peft.peft_config["default"], "orth_reg_weight"):
            return None  # only AdaLoRA's tuner adds a regularizer
        # The tuner's forward adds its regularizer to the loss that the model returns; if that is zero, the regularizer
        # remains.
        model = tuner.model
        kinds = [parameter.dtype for parameter in model.parameters() if parameter.requires_grad]
        dtype = functools.reduce(torch.promote_types, kinds, torch.float32)  # PEFT adds to it in place
        zero = torch.zeros((), dtype=dtype, device=next(model.parameters()).device)
        model.forward = lambda: SimpleNamespace(loss=zero)
        try:
            loss = tuner().loss
        finally:
            del model.forward
        return loss if loss.requires_grad else None

    def decays(self, name: str) -> bool:
        # The rule of transformers' trainer, independent of the shape in which PEFT stores a parameter.
        owner, _, last = name.rpartition(".")
        return last != "bias" and "norm" not in type(self._peft.get_submodule(owner)).__name__.lower()

    def on_update(self, step: Step) -> None:
        tuner = self._tuner()
        self._started = True
        if not hasattr(tuner, "update_and_allocate"):
            return
        now = step.index - 1
        if hasattr(tuner, "rankallocator"):
            config = tuner.peft_config["default"]
            last = config.total_step - config.tfinal
            kept = None if config.rank_pattern is None else sum(map(sum, config.rank_pattern.values()))
            if now > last and (kept is None or kept > tuner.rankallocator.target_bgt):
                now = last  # that step was skipped, and PEFT prunes to the target in no other step
        tuner.update_and_allocate(now)

    def is_final_form(self, step: Step) -> bool:
        config = self._peft.peft_config["default"]
        # At the last step PEFT's allocation is final, also with tfinal 0, its default.
        late = step.index >= step.total or not hasattr(config, "tfinal") or step.index - 1 >= step.total - config.tfinal
        return late and self._over_budget() is None

    def on_train_end(self, step: Step) -> None:
        if (problem := self._over_budget()) is not None:
            raise RuntimeError(f"budget: {problem}")

    def _over_budget(self) -> str | None:
        """Return in words what exceeds the allocator's target, or None."""
        tuner = self._tuner()
        if tuner is None or (target := budget.promised(tuner)) is None:
            return None
        ranks, parts = sum(self.ranks().values()), budget.trained_subspaces(tuner)
        used, what = (parts, "subspaces") if parts else (ranks, "ranks")
        return f"{used} {what} are left, the target is {target}" if used > target else None

    def ranks(self) -> dict[str, int]:
        ranks: dict[str, int] = {}
        masked: dict[str, torch.Tensor] = {}
        for name, module in self._peft.named_modules():
            name = name.removeprefix("base_model.model.")
            if hasattr(module, "lora_E"):
                # All e are zero at the start; later a module can only lose all its ranks to a mask.
                ranks[name] = len(e := module.lora_E["default"])
                if self._started:
                    masked[name] = e.flatten() != 0
            elif self._kind.has_rank and isinstance(getattr(module, "r", None), dict) and "default" in module.r:
                ranks[name] = min(int(module.r["default"]), module.in_features, module.out_features)
        return ranks | {name: int(np.count_nonzero(e)) for name, e in to_host(masked).items()}

    @property
    def counts_ranks_on_device(self) -> bool:
        return any(hasattr(module, "lora_E") for module in self._peft.modules())

    def effective_parameters(self) -> int | None:
        if not hasattr(self._tuner(), "update_and_allocate"):
            return None
        masked: int | torch.Tensor = 0  # a tensor from the first module on, read once for all of them
        for module in self._peft.modules():
            if hasattr(module, "lora_E"):
                e, a, b = (getattr(module, f"lora_{part}")["default"] for part in "EAB")
                masked = masked + (e == 0).sum() * (1 + a.shape[1] + b.shape[0])
        parameters = dict(self._peft.named_parameters())
        # AdaMSS freezes parts for good, but what they have learned still acts.
        return sum(parameters[name].numel() for name in self._trained) - int(masked)

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

    def start_from(self, state: Mapping[str, Any]) -> None:
        if state:  # PEFT's allocation depends on the step only, and begins with all ranks
            raise ValueError(f"method: {self.method} would allocate again, beginning with all that it started with")

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
        if isinstance(getattr(config, "feedforward_modules", None), set):
            # IA3's config can be read again only if they are a subset of its targets, with the same names.
            endings = tuple(config.feedforward_modules)
            config.feedforward_modules = {name for name in config.target_modules if name.endswith(endings)}
        config.modules_to_save = list(head)
        # Only the head: the function would also wrap trainable tokens, which are wrapped already.
        wanted: Any = SimpleNamespace(modules_to_save=list(head), inference_mode=False)
        set_additional_trainable_modules(self._peft, wanted, None, "default")
        order_sets(config)
        return self._peft

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        if self._tuner() is not None:
            with self._peft.disable_adapter():
                yield
            return
        # PEFT's own way to disable a prompt calls methods that only generating models have.
        self._peft.forward = self._peft.base_model.forward
        try:
            yield
        finally:
            del self._peft.forward

    def _config(self, target_modules: list[str]) -> Any:
        cls, chosen = options.config_class(self.method), dict(self.options)
        fields = options.defaults(cls)
        if "target_modules" in fields and target_modules:
            chosen.setdefault("target_modules", target_modules)
        if isinstance(inner := chosen.get("feedforward_modules"), list) and target_modules:
            chosen["feedforward_modules"] = options.feedforward(inner, target_modules)
        if "total_step" in fields and self._total_steps is not None:
            chosen.setdefault("total_step", self._total_steps)
        if "progressbar" in fields:
            chosen.setdefault("progressbar", False)
        if self._kind.layers == "none":
            # Selects the wrapper that puts the prompt before the input. Without a head a model's outputs are words.
            chosen["task_type"] = self._task or ("SEQ_CLS" if self._has_head else "CAUSAL_LM")
        with options.refuse_ignored(self.method):
            try:
                return cls(**chosen)
            except Exception as error:
                raise ValueError(f"options: PEFT's {self.method} refuses: {options.line(error)}") from error

    def _target_modules(self, model: nn.Module, head: Sequence[str]) -> list[str]:
        if self.targets is None or "target_modules" in self.options or self._kind.layers == "none":
            return []
        if self._kind.layers == "linear":
            return list(targets.select(model, self.targets, head=head))
        selected: list[str] = []
        for pattern in [self.targets] if isinstance(self.targets, str) else self.targets:
            outside = [name for name, _ in model.named_modules() if not targets.inside(name, head)]
            matched = [name for name in outside if targets.matches(name, pattern)]
            if not matched:
                raise ValueError(f"targets: no module ends in {pattern!r}")
            selected += [name for name in matched if name not in selected]
        return selected

    def _tuner(self) -> Any:
        """Return PEFT's tuner, or None for prompt learning, which has none."""
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
