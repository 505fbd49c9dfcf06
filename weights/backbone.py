"""A backbone's weights, and what low ranks make of them: the one place in `analysis` that needs torch.

Everything else here reads what runs have left behind. This looks at a model before the first run, and what it
recommends must be what a run then does: so the decompositions, the rules for a rank and the meaning of a target's
name are the methods' own (`variants.core`), and where a model of `conf/model` lies is what the trainer knows.
They are imported within the functions that need them: no other verb waits for torch, and `figures` draws what
comes out of here without it.
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

CONF = Path(__file__).parents[1] / "conf"


@dataclass(frozen=True)
class Layer:
    """One weight, of the shape that it has in the file.

    singular_values: all, falling. ranks: what each rule recommends, by its name (`90 % energy`, `Gavish-Donoho`).
    errors: ‖W − W_r‖ / ‖W‖ by (method, r); no entry for an r that the weight has not got.
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
        """(r,): the share of ‖W‖² that the first i directions hold."""
        squares = self.singular_values**2
        return squares.cumsum() / squares.sum()

    def parameters(self, rank: int) -> int:
        """Of two factors of that rank."""
        return rank * sum(self.shape)


def locate(model: str, overrides: Sequence[str] = ()) -> Path:
    """The folder of a model: `model` itself, or what the file conf/model/`model`.yaml leads to.

    overrides: as on the command line of train.py (`model.id=…`). Raises `AnalysisError`.
    """
    if Path(model).is_dir():
        if overrides:
            raise AnalysisError(f"--override: {overrides[0]!r} with a folder, allowed: none; a folder has no settings")
        return Path(model)
    names = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    if model not in names:
        raise AnalysisError(f"model: {model!r}, allowed: a folder, {', '.join(names)}")
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from trainer import config as run_config
    from trainer.data.sources import fetch_model
    from trainer.errors import ConfigError, message
    from trainer.sweeps.plan import model_sources

    run_config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"model={model}", *overrides])
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
    # The order in the file is the alphabet's, in which block 10 comes before block 2.
    return {name: every[name] for name in sorted(chosen, key=natural)}


def analyse(
    layers: dict[str, Path], ranks: Sequence[int], shares: Sequence[float], methods: Sequence[str], seed: int
) -> Iterator[Layer]:
    """Layer after layer; one weight is in memory at a time. Raises `AnalysisError`."""
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
                # The truncated SVD is the best of all (Eckart and Young 1936): what is left is what was cut off.
                errors[method, rank] = float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))
            else:
                errors[method, rank] = decompose(w, method, rank, seed=seed).relative_error
    rows, columns = w.shape
    return Layer(name, (rows, columns), s, chosen, errors)
