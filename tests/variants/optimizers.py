"""Optimizers of released codes that torch has not."""

from __future__ import annotations

from typing import Any

import torch


class EarlyEps(torch.optim.Optimizer):
    """AdamW as in transformers until 2024: ε is added before the bias correction, and the decay comes last."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                m = state["exp_avg"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v = state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                n = state["step"]
                rate = group["lr"] * (1 - beta2**n) ** 0.5 / (1 - beta1**n)
                p.addcdiv_(m, v.sqrt() + group["eps"], value=-rate)
                p.mul_(1 - group["lr"] * group["weight_decay"])
