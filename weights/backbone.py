"""Decomposes the weights of a backbone before any run.

A run must do what it recommends. So decompositions, rules for a rank and the meaning of targets are those of the
methods (`variants.core`), and the trainer locates a model of `conf/model`. They are imported within the functions
that need them, so that other verbs don't wait for torch and `figures` draws the results without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.stats.matrices import effective_rank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """One weight, with the shape in its file.

    singular_values: all, descending. ranks: the recommendation of each rule (`90 % energy`, `Gavish-Donoho`).
    errors: ‖W − W_r‖ / ‖W‖ by (method, r), without ranks r that are too large for the weight.
    """

    name: str
    shape: tuple[int, int]
    singular_values: np.ndarray
    ranks: dict[str, int]
    errors: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def effective_rank(self) -> float:
        return effective_rank(self.singular_values)

    @property
    def energy(self) -> np.ndarray:
        """(r,): the fraction of ‖W‖² in the first i directions."""
        squares = self.singular_values**2
        return squares.cumsum() / squares.sum()

    def parameters(self, rank: int) -> int:
        """The number of parameters of two factors of that rank."""
        return rank * sum(self.shape)


def locate(model: str, overrides: Sequence[str] = ()) -> Path:
    """The folder of a model: `model` itself, or that of conf/model/`model`.yaml.

    overrides: as on the command line of train.py (`model.id=…`). Raises `AnalysisError`.
    """
    if Path(model).is_dir():
        if overrides:
            raise AnalysisError(f"--override: {overrides[0]!r} with a folder, allowed: none; a folder has no settings")
        return Path(model)
    from trainer import config_files

    names = config_files.names("model")
    if model not in names:
        raise AnalysisError(f"model: {model!r}, allowed: a folder, {', '.join(names)}")
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from trainer import config as run_config
    from trainer.data.sources import fetch_model
    from trainer.errors import ConfigError, message
    from trainer.overrides import quoted
    from trainer.sweeps.plan import model_sources

    run_config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_files.SUITE), version_base="1.3"):
            folder = config_files.own()
            own = [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]
            config = compose("config", [*own, f"model={model}", *overrides])
        run_config.validate(config)
        return fetch_model(model_sources(config), config.model.files)
    except (HydraException, ConfigError) as error:
        raise AnalysisError(f"model: {message(error)}") from None


def names(folder: Path, targets: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, Path]:
    """The layers to look at, in the order of blocks, and the file that each is in.

    targets: as a variant's (`query`, `layer.0.*`). Without any: every matrix within a numbered block, which are the
    layers that "all-linear" adapts, and neither embeddings nor heads. Raises `AnalysisError`.
    """
    from safetensors import SafetensorError, safe_open

    from analysis.text.sorting import natural
    from trainer.data.sources import layout
    from variants.core.target_modules import block_number, matches

    files = [name for name in layout.weights({path.name for path in folder.iterdir()}) if not name.endswith(".json")]
    if not files or not files[0].endswith(".safetensors"):
        raise AnalysisError(f"model: {folder} holds no weights as safetensors, as save_pretrained writes them")
    every: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118, it is no dict
                    if key.endswith(".weight") and len(weights.get_slice(key).get_shape()) == 2:
                        every[key.removesuffix(".weight")] = folder / file
        except (OSError, SafetensorError) as error:
            raise AnalysisError(f"model: {folder / file} can't be read: {error}") from None

    def meant(field_name: str, patterns: Sequence[str]) -> set[str]:
        for pattern in patterns:
            if not any(matches(name, pattern) for name in every):
                ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in every)) or "none"
                raise AnalysisError(f"--{field_name}: no matrix ends in {pattern!r}; there are: {ends}")
        return {name for name in every if any(matches(name, pattern) for pattern in patterns)}

    chosen = meant("targets", targets) if targets else {name for name in every if block_number(name) is not None}
    chosen -= meant("exclude", exclude)
    if not chosen:
        raise AnalysisError(f"model: {folder} has no matrix in a numbered block; name layers with --targets")
    # The file is in alphabetical order, in which block 10 precedes block 2.
    return {name: every[name] for name in sorted(chosen, key=natural)}


def analyse(
    layers: dict[str, Path], ranks: Sequence[int], shares: Sequence[float], methods: Sequence[str], seed: int
) -> Iterator[Layer]:
    """The layers one by one, with one weight in memory at a time. Raises `AnalysisError`."""
    from safetensors import safe_open

    for name, file in layers.items():
        with safe_open(file, framework="pt") as weights:
            weight = weights.get_tensor(f"{name}.weight")
        try:
            yield _layer(name, weight, ranks, shares, methods, seed)
        except ValueError as error:
            raise AnalysisError(f"{name}: {error}") from None


def _layer(
    name: str,
    weight: torch.Tensor,
    ranks: Sequence[int],
    shares: Sequence[float],
    methods: Sequence[str],
    seed: int,
) -> Layer:
    import torch

    from variants.core.decompositions import GAVISH_DONOHO, choose_rank, decompose

    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if not bool(torch.isfinite(w).all()) or not bool(w.any()):
        raise ValueError("only zeros, or values that are not finite: there is nothing to decompose")
    values = torch.linalg.svdvals(w)
    s = values.double().numpy()
    rules: dict[str, Any] = {f"{100 * share:g} % energy": share for share in shares}
    rules["Gavish-Donoho"] = GAVISH_DONOHO
    chosen = {rule: choose_rank(values, w.shape, what) for rule, what in rules.items()}
    errors: dict[tuple[str, int], float] = {}
    for method in methods:
        for rank in ranks:
            if rank > len(s):
                continue
            if method == "svd":
                # The truncated SVD is optimal (Eckart and Young 1936); its error is the truncated part.
                errors[method, rank] = float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))
            else:
                errors[method, rank] = decompose(w, method, rank, seed=seed).relative_error
    rows, columns = w.shape
    return Layer(name, (rows, columns), s, chosen, errors)
