"""The suite's scores, one class each: formula and source. `score.py` says what a score is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import collectives
from variants.core.adapters import svd, svd_triplets
from variants.core.adapters.adapter import LowRank
from variants.core.adapters.svd_triplets import PARTS
from variants.core.allocation.ablation_loss import AblationLoss
from variants.core.allocation.importance import Importance
from variants.core.allocation.score import SCORES, Adapters, Score, Values, register

__all__ = [
    "SCORES",
    "AblationLoss",
    "ComponentNorm",
    "Fisher",
    "FrobeniusShare",
    "GradientNorm",
    "Magnitude",
    "Random",
    "Sensitivity",
    "SensitivityRatio",
    "SensitivityUncertainty",
    "SingularValue",
    "Smoothed",
    "SpectralEntropy",
    "Uniform",
    "WeightGradient",
]  # `SCORES` is whole when this module is imported

# -- sensitivity of entries ------------------------------------------------------------------------


@register("sensitivity")
@dataclass(kw_only=True)
class Sensitivity(Score):
    """S_i = Ī(e_i) + mean_j Ī(A_ij) + mean_j Ī(B_ji), Ī the smoothed |p · ∂L/∂p|; without e the two means.

    Source: the ablation of Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), section 4.4. The gradient is that of the
    step, p the parameter after it, as in the released code.
    """

    beta1: float = 0.85
    _importance: Importance = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._importance = Importance(self.beta1, getattr(self, "beta2", 0.0))

    def update(self, adapters: Adapters) -> None:
        self._importance.update(svd_triplets.parameters(adapters))

    def scores(self, adapters: Adapters) -> Values:
        if not self._importance.mean:
            raise RuntimeError("importance: no step was scored; none before the final phase had finite gradients")
        return svd_triplets.scores(self.of_entries(), list(adapters))

    def of_entries(self) -> Values:
        """Return the score of every entry, by "layer.part"."""
        return self._importance.mean

    def keep(self, name: str, index: torch.Tensor) -> None:
        for part, dim in PARTS.items():
            self._importance.keep(f"{name}.{part}", index, dim)

    def append(self, name: str, count: int) -> None:
        for part, dim in PARTS.items():
            self._importance.append(f"{name}.{part}", count, dim)

    def state_dict(self) -> dict[str, Any]:
        return self._importance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importance.load_state_dict(state)


@register("sensitivity_uncertainty")
@dataclass(kw_only=True)
class SensitivityUncertainty(Sensitivity):
    """As `Sensitivity`, with Ī · Ū in place of Ī; Ū is the smoothed |I − Ī|.

    Source: Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), equations 7 to 12.
    """

    beta2: float = 0.85

    def of_entries(self) -> Values:
        return self._importance.scores()


@register("sensitivity_ratio")
@dataclass(kw_only=True)
class SensitivityRatio(Sensitivity):
    """As `Sensitivity`, with (Ī + 10⁻⁶) / (Ū + 10⁻⁶) in place of Ī: sensitivity that is certain counts more.

    Source: IGU-LoRA (arXiv 2603.13792), code withyou12/igulora 3f5ba10. Its scaled losses are part of the method, not
    of the score.
    """

    beta2: float = 0.85

    def of_entries(self) -> Values:
        mean, uncertainty = self._importance.mean, self._importance.uncertainty
        return {name: (value + 1e-6) / (uncertainty[name] + 1e-6) for name, value in mean.items()}


# -- smoothed numbers of components or layers ------------------------------------------------------


@dataclass(kw_only=True)
class Smoothed(Score):
    """A number that is smoothed over the steps: mean ← β₁ mean + (1 − β₁) now. A subclass defines `now`."""

    beta1: float = 0.85
    _mean: Values = field(init=False, repr=False, compare=False, default_factory=dict)

    def now(self, name: str, adapter: LowRank) -> torch.Tensor:
        """Return (r,) of the components of a layer in this step, or (1,) of the layer."""
        raise NotImplementedError(f"{type(self).__name__}.now")

    @torch.no_grad()
    def update(self, adapters: Adapters) -> None:
        for name, adapter in adapters.items():
            if not adapter.is_empty:
                now = self.now(name, adapter)
                mean = self._mean.get(name)
                self._mean[name] = (1 - self.beta1) * now + (0.0 if mean is None else self.beta1 * mean.to(now.device))

    def scores(self, adapters: Adapters) -> Values:
        if not self._mean:
            raise RuntimeError("score: no step was measured; none had finite gradients")
        return {name: self._mean[name] if not a.is_empty else a.A.new_zeros(0) for name, a in adapters.items()}

    def keep(self, name: str, index: torch.Tensor) -> None:
        if self.per == "component" and name in self._mean:
            self._mean[name] = self._mean[name][index]

    def append(self, name: str, count: int) -> None:
        if self.per == "component" and name in self._mean:
            self._mean[name] = torch.cat([self._mean[name], self._mean[name].new_zeros(count)])

    def state_dict(self) -> dict[str, Any]:
        if any(not mean.isfinite().all() for mean in self._mean.values()):
            raise ValueError("score: a measurement was not finite")
        return {"mean": dict(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mean = dict(state["mean"])


@register("gradient_norm")
@dataclass(kw_only=True)
class GradientNorm(Smoothed):
    """Smoothed norm of ∂L/∂(A_i, B_i, e_i). Source: the freezing score of AFLoRA (arXiv 2403.13269) reads gradients
    alone in this way; at the start the gradient of e or B is that of W in the component's direction."""

    at_start: ClassVar[bool] = True

    def now(self, name: str, adapter: LowRank) -> torch.Tensor:
        return _over_parts(adapter, lambda p: _gradient(name, p).square()).sqrt()


@register("fisher")
@dataclass(kw_only=True)
class Fisher(Smoothed):
    """Smoothed Σ p² (∂L/∂p)² over the entries p of a component: the loss that removing it costs, with the diagonal of
    the empirical Fisher matrix of whole batches in place of the Hessian.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787.
    """

    def now(self, name: str, adapter: LowRank) -> torch.Tensor:
        return _over_parts(adapter, lambda p: (p * _gradient(name, p)).square())


@register("frobenius_share")
@dataclass(kw_only=True)
class FrobeniusShare(Smoothed):
    """Smoothed ‖e_i B_i A_i‖ / ‖ΔW‖, Frobenius norms. Source: dynamic-rank DoRA (Mao et al. 2024, arXiv 2405.17357),
    whose β is 0.9."""

    beta1: float = 0.9

    def now(self, name: str, adapter: LowRank) -> torch.Tensor:
        # ‖Σ e_i B_i A_i‖² = Σ_ij e_i e_j (B_iᵀ B_j)(A_i A_jᵀ), without forming ΔW.
        e = adapter.A.new_ones(len(adapter.A)) if adapter.e is None else adapter.e
        grams = (adapter.B.T @ adapter.B) * (adapter.A @ adapter.A.T) * torch.outer(e, e)
        whole = grams.sum().clamp_min(0.0).sqrt()
        return grams.diagonal().clamp_min(0.0).sqrt() / whole.clamp_min(torch.finfo(whole.dtype).tiny)


@register("weight_gradient")
@dataclass(kw_only=True)
class WeightGradient(Smoothed):
    """Smoothed mean |W ∘ ∂L/∂W| of a layer. Source: GoRA (arXiv 2502.12171), which averages gradients before training.

    Costs a dense product and matrix (out, in) for each layer and step that is measured.
    """

    per: ClassVar[str] = "layer"
    at_start: ClassVar[bool] = True
    weights: ClassVar[bool] = True
    _gradients: Values = field(init=False, repr=False, compare=False, default_factory=dict)
    _hooks: list[Any] = field(init=False, repr=False, compare=False, default_factory=list)

    def watch(self, adapters: Adapters) -> None:
        self._stop()
        self._gradients.clear()
        for name, adapter in adapters.items():
            self._hooks.append(adapter.register_forward_hook(self._listen(name, adapter)))

    def _listen(self, name: str, adapter: LowRank) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def listen(module: nn.Module, arguments: tuple[Any, ...], y: torch.Tensor) -> None:
            x, dtype = arguments[0].detach(), adapter.A.dtype

            def collect(gradient: torch.Tensor) -> None:
                inputs = x.to(dtype) if x.is_floating_point() else x
                part = adapter.layer_kind.gradient(inputs, gradient.to(dtype))
                self._gradients[name] = self._gradients[name] + part if name in self._gradients else part

            if y.requires_grad:
                y.register_hook(collect)

        return listen

    def now(self, name: str, adapter: LowRank) -> torch.Tensor:
        if name not in self._gradients:
            raise ValueError(f"score: {name} is not part of the loss; exclude it")
        gradient = collectives.all_reduce_sum(self._gradients.pop(name))
        return (adapter.layer_kind.matrix.to(gradient.dtype) * gradient).abs().mean().reshape(1)

    def update(self, adapters: Adapters) -> None:
        self._stop()
        super().update(adapters)

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


# -- read from the parameters ----------------------------------------------------------------------


@register("magnitude")
@dataclass(kw_only=True)
class Magnitude(Score):
    """|e_i|, the size of a component's gate. Source: the ablation of AdaLoRA (arXiv 2303.10512); SoRA and L1RA remove
    gates of size zero."""

    diagonal: ClassVar[bool] = True

    def scores(self, adapters: Adapters) -> Values:
        return {name: _e(adapter).detach().abs() for name, adapter in adapters.items()}


@register("component_norm")
@dataclass(kw_only=True)
class ComponentNorm(Score):
    """‖e_i B_i A_i‖ = |e_i| ‖B_i‖ ‖A_i‖, Frobenius. Source: the numerator of dynamic-rank DoRA's score
    (arXiv 2405.17357), which does not divide by a layer's ‖ΔW‖ and so compares layers by size."""

    @torch.no_grad()
    def scores(self, adapters: Adapters) -> Values:
        norms = {name: a.B.norm(dim=0) * a.A.norm(dim=1) for name, a in adapters.items()}
        return {name: norms[name] if a.e is None else norms[name] * a.e.abs() for name, a in adapters.items()}


@register("spectral_entropy")
@dataclass(kw_only=True)
class SpectralEntropy(Score):
    """−Σ p_i log p_i / log r of a layer, p_i = e_i² / Σ e²: 1 if all its components are used alike. A layer of rank 1
    has 1, one whose e are all zero 0.

    Source: FlexLoRA (arXiv 2601.22905), whose code gives a layer of rank 1 no number.
    """

    per: ClassVar[str] = "layer"
    diagonal: ClassVar[bool] = True

    @torch.no_grad()
    def scores(self, adapters: Adapters) -> Values:
        return {name: self._of(_e(adapter)) for name, adapter in adapters.items()}

    @staticmethod
    def _of(e: torch.Tensor) -> torch.Tensor:
        energy = e.square().sum()
        if len(e) <= 1:
            return (energy > 0).to(e.dtype).reshape(1)
        p = e.square() / energy.clamp_min(torch.finfo(e.dtype).tiny)
        entropy: torch.Tensor = torch.special.entr(p).sum() / torch.log(torch.tensor(float(len(e))))
        return entropy.reshape(1)


@register("singular_value")
@dataclass(kw_only=True)
class SingularValue(Score):
    """σ_i of ΔW of each layer, which is rewritten as its singular triplets: one threshold cuts all layers.

    Source: PARA (arXiv 2604.27796).
    """

    of_trained: ClassVar[bool] = True

    @torch.no_grad()
    def scores(self, adapters: Adapters) -> Values:
        return {name: self._rewrite(adapter) for name, adapter in adapters.items()}

    @staticmethod
    def _rewrite(adapter: LowRank) -> torch.Tensor:
        b = adapter.B if adapter.e is None else adapter.B * adapter.e
        spectrum = svd.of_product(adapter.A, b * adapter.scale)
        r = len(adapter.A)  # at most min(in, out), so there are as many triplets
        sigma = spectrum.s[:r]
        if adapter.e is None:
            root = (sigma / adapter.scale).sqrt()
            a, b = root[:, None] * spectrum.Vh[:r], spectrum.U[:, :r] * root
        else:
            a, b = spectrum.Vh[:r], spectrum.U[:, :r]
            adapter.e.copy_(sigma / adapter.scale)
        adapter.A.copy_(a)
        adapter.B.copy_(b)
        return sigma


# -- controls --------------------------------------------------------------------------------------


@register("random")
@dataclass(kw_only=True)
class Random(Score):
    """A number from U(0, 1) for each component, drawn once with the run's seed: the control of every score that
    measures. Reference: the suite's own."""

    at_start: ClassVar[bool] = True
    _drawn: Values = field(init=False, repr=False, compare=False, default_factory=dict)

    def scores(self, adapters: Adapters) -> Values:
        for name, adapter in adapters.items():
            if name not in self._drawn:
                self._drawn[name] = torch.rand(len(adapter.A), dtype=torch.float64)
        return {name: self._drawn[name].to(adapter.A.device) for name, adapter in adapters.items()}

    def keep(self, name: str, index: torch.Tensor) -> None:
        if name in self._drawn:
            self._drawn[name] = self._drawn[name][index.to(self._drawn[name].device)]

    def append(self, name: str, count: int) -> None:
        if name in self._drawn:
            more = torch.rand(count, dtype=torch.float64).to(self._drawn[name].device)
            self._drawn[name] = torch.cat([self._drawn[name], more])

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": dict(self._drawn)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._drawn = dict(state["drawn"])


@register("uniform")
@dataclass(kw_only=True)
class Uniform(Score):
    """−i for the component i of every layer, so that ranks stay as even as the budget allows: the control of
    allocation itself. Reference: the suite's own."""

    at_start: ClassVar[bool] = True
    even: ClassVar[bool] = True

    def scores(self, adapters: Adapters) -> Values:
        return {
            name: -torch.arange(len(adapter.A), dtype=torch.float64, device=adapter.A.device)
            for name, adapter in adapters.items()
        }


def _e(adapter: LowRank) -> nn.Parameter:
    assert adapter.e is not None  # `Score.diagonal` asks for the form
    return adapter.e


def _gradient(name: str, parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise ValueError(f"score: {name} is not part of the loss; exclude it")
    return parameter.grad


def _over_parts(adapter: LowRank, entries: Callable[[nn.Parameter], torch.Tensor]) -> torch.Tensor:
    """Return (r,): the sum of `entries`, which has a parameter's shape, over each component's entries."""
    total = entries(adapter.A).sum(1) + entries(adapter.B).sum(0)
    return total if adapter.e is None else total + entries(adapter.e)
