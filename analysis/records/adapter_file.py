"""Reads ΔW, its factors and its sparsity pattern from a run's `adapter/`, without torch and the base model.

It depends on the names that `runs/README.md` defines, never on the method's name:

    parameters/<layer>.A, .B[, .e]        ΔW ∝ B diag(e) A; also in pieces, .A.0, .A.1, …
    variant/frozen/<layer>/A              a frozen factor, instead of the parameter
    variant/start/<layer>/A, /B           B₀ A₀, subtracted from it
    variant/places/<layer>/A, /B          A and B hold the entries at these indices of matrices of variant/shapes/…
    variant/indices/<layer>               ΔW ∝ parameters/<layer>.values at these indices of the matrix (out, in);
                                          or variant/layers/<layer>/indices
    layers/<layer>                        [out, in]

Other updates (in the basis of W, a trained W) can't be computed without the base model.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from analysis.records.run_files import Unusable
from trainer.errors import message
from trainer.hashing import sha256
from trainer.record import Files

Array = np.ndarray


@dataclass(frozen=True)
class Pattern:
    """Where a sparse update has entries. indices: (n,), into the flattened matrix of `shape`."""

    indices: Array
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Fraction of the matrix that has entries."""
        return len(self.indices) / self.size


@dataclass(frozen=True)
class Factors:
    """ΔW ∝ B diag(e) A. A: (r, in). B: (out, r). e: (r,), or None for all ones."""

    A: Array
    B: Array
    e: Array | None


class Saved:
    """The adapter of one run. Tensors are read lazily."""

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        """Opens `folder/adapter/state`. files: the hashes in the record, if there are any. Raises `Unusable`."""
        try:
            hashes = files or Files()
            for name, expected in (("state.safetensors", hashes.weights), ("state.json", hashes.outline)):
                if expected is not None and sha256(folder / "adapter" / name) != expected:
                    raise Unusable(f"adapter/{name}: not what the run wrote: its hash is not that of the record")
            tree = json.loads((folder / "adapter" / "state.json").read_text(encoding="utf-8"))
            # The file stays open: a state has hundreds of tensors, and opening it reads the whole header.
            self._file = safe_open(folder / "adapter" / "state.safetensors", framework="numpy")
            self._names = frozenset(self._file.keys())
            self._variant, self._sizes = dict(tree["variant"]), dict(tree.get("layers") or {})
            parameters = list(tree["parameters"])
        except FileNotFoundError:
            raise Unusable("no adapter/ with state.json and state.safetensors") from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Unusable(f"adapter/: can't be read ({message(error)})") from None
        # By layer, the rest of its parameters' names: A, B, e, A.0, …
        self._parts: dict[str, list[str]] = defaultdict(list)
        for name in parameters:
            pieces = name.split(".")
            for end in range(len(pieces) - 1, 0, -1):
                layer = ".".join(pieces[:end])
                if layer in self._sizes:
                    self._parts[layer].append(".".join(pieces[end:]))
                    break

    @property
    def layers(self) -> list[str]:
        """The adapted layers in the model's order. Raises `Unusable` if there are none."""
        if not self._sizes:
            raise Unusable("adapter/ names no adapted layers: ΔW can't be computed without the base model")
        return list(self._sizes)

    def size(self, layer: str) -> tuple[int, int]:
        """(out, in) of a layer."""
        rows, columns = self._sizes[layer]
        return rows, columns

    def patterns(self) -> dict[str, Pattern]:
        """The sparsity pattern of each layer's update, or of each of its factors (`<layer>.A`).

        Raises `Unusable` if the update is not sparse.
        """
        patterns: dict[str, Pattern] = {}
        for layer in self.layers:
            if indices := self._indices(layer):
                patterns[layer] = self._pattern(indices, self.size(layer))
            for part in self._group("places").get(layer, {}):
                patterns[f"{layer}.{part}"] = self._pattern(f"places/{layer}/{part}", self._shape(layer, part))
        if not patterns:
            raise Unusable("the update is not sparse")
        return patterns

    def factors(self, layer: str) -> Factors:
        """The trained factors of a layer; its update may have further parts.

        Raises `Unusable` if the layer has no factors.
        """
        if layer in self._group("places"):
            a, b = (
                self._scattered(layer, part, f"places/{layer}/{part}", self._shape(layer, part)) for part in ("A", "B")
            )
            return Factors(a, b, None)
        kinds = self._kinds(layer)
        if not kinds >= {"A", "B"}:
            raise Unusable(f"saved of a layer is {_listed(kinds)}: no factors A and B")
        a, b = self._stacked(layer, "A", 0), self._stacked(layer, "B", 1)
        e = self._stacked(layer, "e", 0) if "e" in kinds else None
        rows, columns = self.size(layer)
        if a.shape[1:] != (columns,) or b.shape != (rows, len(a)) or (e is not None and e.shape != (len(a),)):
            raise Unusable(f"saved of {layer} are A {a.shape} and B {b.shape}: no factors of its ΔW")
        return Factors(a, b, e)

    def singular_values(self, layer: str) -> Array:
        """The singular values of ΔW in descending order, up to a positive factor; zeros beyond the rank are left out.

        Raises `Unusable` if ΔW can't be computed.
        """
        kinds = self._kinds(layer)
        if indices := self._indices(layer):
            if kinds != {"values"}:
                raise Unusable(
                    f"saved of a sparse layer is {_listed(kinds)}: its parts are added with scales that no file has"
                )
            dense = self._scattered(layer, "values", indices, self.size(layer))
            return np.linalg.svd(dense, compute_uv=False)
        if kinds not in ({"A", "B"}, {"A", "B", "e"}):
            raise Unusable(f"saved of a layer is {_listed(kinds)}: its ΔW can't be computed without the base model")
        if layer in self._group("past"):
            raise Unusable(
                f"saved of {layer} are factors and an earlier sum: they are added with a scale that no file has"
            )
        factors = self.factors(layer)
        a, b = factors.A, factors.B if factors.e is None else factors.B * factors.e
        if layer in self._group("start"):
            start = f"/variant/start/{layer}"
            a = np.concatenate([a, self._tensor(f"{start}/A")])
            b = np.concatenate([b, -self._tensor(f"{start}/B")], axis=1)
        # B A = Q_B (R_B R_Aᵀ) Q_Aᵀ has the singular values of the small matrix R_B R_Aᵀ.
        right, left = (np.linalg.qr(factor.astype(np.float64)).R for factor in (a.T, b))
        return np.linalg.svd(left @ right.T, compute_uv=False)

    def _indices(self, layer: str) -> str | None:
        """Where the variant's state has the indices of a sparse layer; None if the layer is not sparse."""
        if layer in self._group("indices"):
            return f"indices/{layer}"
        entry = self._group("layers").get(layer)
        return f"layers/{layer}/indices" if isinstance(entry, dict) and "indices" in entry else None

    def _kinds(self, layer: str) -> set[str]:
        """The kinds of tensors saved of a layer: A, B, e, values, …; several pieces count once."""
        trained = {re.sub(r"\.\d+$", "", part) for part in self._parts.get(layer, [])}
        return trained | set(self._group("frozen").get(layer, {}))

    def _group(self, name: str) -> dict[str, Any]:
        group = self._variant.get(name)
        return group if isinstance(group, dict) else {}

    def _shape(self, layer: str, part: str) -> tuple[int, int]:
        try:
            rows, columns = self._group("shapes")[layer][part]
        except (KeyError, TypeError, ValueError):
            raise Unusable(f"adapter/: the indices of {layer}.{part} have no shape") from None
        return rows, columns

    def _pattern(self, name: str, shape: tuple[int, int]) -> Pattern:
        """The indices `name` of the variant's state. Raises `Unusable` if they are outside of `shape` or repeated."""
        indices = self._tensor(f"/variant/{name}")
        inside = not len(indices) or (indices.min() >= 0 and indices.max() < math.prod(shape))
        if not inside or len(np.unique(indices)) < len(indices):
            raise Unusable(f"adapter/: {name} are not indices of a matrix {shape[0]}×{shape[1]}")
        return Pattern(indices, shape)

    def _scattered(self, layer: str, part: str, name: str, shape: tuple[int, int]) -> Array:
        """The dense matrix whose entries at the indices `name` are the parameter `part`."""
        indices, values = self._pattern(name, shape).indices, self._tensor(f"/parameters/{layer}.{part}")
        if indices.shape != values.shape:
            raise Unusable(f"adapter/: {len(indices)} {name} for {len(values)} values")
        dense = np.zeros(math.prod(shape))
        dense[indices] = values
        return dense.reshape(shape)

    def _stacked(self, layer: str, part: str, axis: int) -> Array:
        """A factor: the parameter, its concatenated pieces, or the frozen tensor."""
        for group in ("frozen", "acting"):
            if part in self._group(group).get(layer, {}):
                return self._tensor(f"/variant/{group}/{layer}/{part}")
        pieces = [name for name in self._parts[layer] if name == part or name.startswith(f"{part}.")]
        return np.concatenate([self._tensor(f"/parameters/{layer}.{piece}") for piece in pieces], axis=axis)

    def _tensor(self, name: str) -> Array:
        if name not in self._names:
            raise Unusable(f"adapter/: no tensor {name}")
        try:
            return self._file.get_tensor(name)
        except (OSError, TypeError, ValueError, SafetensorError) as error:
            raise Unusable(f"adapter/: {name} can't be read ({error})") from None


def _listed(kinds: set[str]) -> str:
    return ", ".join(sorted(kinds)) or "nothing"
