"""The budgets of PEFT's two allocators: which schedules meet them at the end of a run.

AdaLoRA prunes finally to an average of `target_r` ranks per layer at step T − tfinal, counted from 0 as in the bridge.
With tfinal 0, its default, that step never comes, and the run ends with the ranks that the last multiple of deltaT
left, plus those regrown since. AdaMSS (with `use_asa`) freezes subspaces at multiples of `mask_interval`, and meets
`asa_target_subspaces` only at step `final_warmup`.
"""

from __future__ import annotations

from typing import Any

from variants.core import field_checks


def refuse_schedule(config: Any, steps: int, layers: int = 1) -> None:
    """Raise `ValueError` if a run of `steps` steps would not end at the budget.

    layers: number of adapted layers. A schedule that fails with one layer fails with any number.
    """
    if hasattr(config, "target_r"):
        _refuse_adalora(config, steps, layers)
    if getattr(config, "use_asa", False):
        _refuse_adamss(config, steps)


def promised(tuner: Any) -> int | None:
    """Return the final number of ranks (AdaLoRA) or trained subspaces (AdaMSS); None for other methods."""
    if hasattr(tuner, "rankallocator"):
        return int(tuner.rankallocator.target_bgt)
    config = tuner.peft_config["default"]
    return int(config.asa_target_subspaces) if getattr(config, "use_asa", False) else None


def trained_subspaces(tuner: Any) -> int:
    """Return the number of AdaMSS's subspaces that are not frozen."""
    layers = [module for module in tuner.modules() if hasattr(module, "adamss_A")]
    return sum(part.requires_grad for layer in layers for part in layer.adamss_A["default"])


def _refuse_adalora(config: Any, steps: int, layers: int) -> None:
    _refuse_small(config, target_r=1, tinit=0, tfinal=0, deltaT=1)
    if config.target_r >= config.init_r:
        raise ValueError(
            f"options.target_r: {config.target_r}, allowed: below init_r, {config.init_r}; PEFT would stop in mid-run"
        )
    _refuse_other_length(config.total_step, steps)
    tinit, tfinal, interval, last = config.tinit, config.tfinal, config.deltaT, steps - 1
    if tfinal:
        if (last - tfinal) // interval == tinit // interval:
            raise ValueError(
                f"options.deltaT: {interval}, allowed: one with a multiple above tinit, {tinit}, and below "
                f"{steps - tfinal}, where the last pruning is; no rank would be pruned between"
            )
        return
    # The budget at the last step, in PEFT's own arithmetic.
    start, target = config.init_r * layers, config.target_r * layers
    left = int((start - target) * (1 - (last - tinit) / (steps - tinit)) ** 3 + target)
    if last <= tinit or last % interval or left > target:
        raise ValueError(
            f"options.tfinal: 0 with deltaT: {interval}, allowed: 1 or more; PEFT would end a run of {steps} steps "
            f"with more ranks than target_r, {config.target_r}, per layer"
        )


def _refuse_adamss(config: Any, steps: int) -> None:
    _refuse_small(config, asa_target_subspaces=1, init_warmup=0, final_warmup=1, mask_interval=1)
    first, last, interval = config.init_warmup, config.final_warmup, config.mask_interval
    if not first < last < steps or last % interval:
        raise ValueError(
            f"options.final_warmup: {last}, allowed: a multiple of mask_interval, {interval}, above init_warmup, "
            f"{first}, and below {steps}, the run's steps; only there the target is met"
        )


def _refuse_other_length(total: int, steps: int) -> None:
    if total != steps:
        raise ValueError(f"options.total_step: {total}, allowed: {steps}, the run's own, or none")


def _refuse_small(config: Any, **least: int) -> None:
    for name, smallest in least.items():
        value = getattr(config, name)
        field_checks.check(f"options.{name}", value, value >= smallest, f"a whole number ≥ {smallest}")
