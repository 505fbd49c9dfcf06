"""A run's `adapter/`: ΔW, its factors and its sparsity pattern, read without torch and without the base model.

What is read goes by the names that `runs/README.md` sets down, never by the method's name:

    parameters/<layer>.A, .B[, .e]        ΔW ∝ B diag(e) A; also in pieces, .A.0, .A.1, …
    variant/frozen/<layer>/A              a factor that is not trained, in the place of the parameter
    variant/start/<layer>/A, /B           B₀ A₀, subtracted from it
    variant/places/<layer>/A, /B          A and B are the entries at these places of matrices of variant/shapes/…
    variant/indices/<layer>               ΔW ∝ parameters/<layer>.values at these places of the matrix (out, in);
                                          or variant/layers/<layer>/indices
    layers/<layer>                        [out, in]

Everything else (an update in the basis of W, a trained W) can't be told without the base model.
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
    """Places (n,) in a flattened matrix of `shape`: where a sparse update has entries."""

    places: Array
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of the matrix that has entries."""
        return len(self.places) / self.size


@dataclass(frozen=True)
class Factors:
    """ΔW = B diag(e) A up to a positive number. A: (r, in). B: (out, r). e: (r,) or None for ones."""

    A: Array
    B: Array
    e: Array | None


class Saved:
    """The adapter of one run. Tensors are read when they are asked for."""

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        """Opens `folder/adapter/state`. files: what the record says of it, if anything. Raises `Unusable`."""
        try:
            told = files or Files()
            for name, expected in (("state.safetensors", told.weights), ("state.json", told.outline)):
                if expected is not None and sha256(folder / "adapter" / name) != expected:
                    raise Unusable(f"adapter/{name}: not what the run wrote: its hash is not that of the record")
            tree = json.loads((folder / "adapter" / "state.json").read_text(encoding="utf-8"))
            # Held open: a state has hundreds of tensors, and its header names them all.
            self._file = safe_open(folder / "adapter" / "state.safetensors", framework="numpy")
            self._names = frozenset(self._file.keys())
            self._variant, self._sizes = dict(tree["variant"]), dict(tree.get("layers") or {})
            parameters = list(tree["parameters"])
        except FileNotFoundError:
            raise Unusable("no adapter/ with state.json and state.safetensors") from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Unusable(f"adapter/: can't be read ({message(error)})") from None
        # The parameters of each layer by what follows the layer's name: A, B, e, A.0, …
        self._parts: dict[str, list[str]] = defaultdict(list)
        for name in parameters:
            pieces = name.split(".")
            for cut in range(len(pieces) - 1, 0, -1):
                layer = ".".join(pieces[:cut])
                if layer in self._sizes:
                    self._parts[layer].append(".".join(pieces[cut:]))
                    break

    @property
    def layers(self) -> list[str]:
        """The adapted layers in the model's order. Raises `Unusable` where the method has none."""
        if not self._sizes:
            raise Unusable("adapter/ names no adapted layers: ΔW can't be told without the base model")
        return list(self._sizes)

    def size(self, layer: str) -> tuple[int, int]:
        """(out, in) of a layer."""
        rows, columns = self._sizes[layer]
        return rows, columns

    def patterns(self) -> dict[str, Pattern]:
        """Where the update of each layer, or of each of its factors (`<layer>.A`), has entries.

        Raises `Unusable` for an update that is not sparse.
        """
        found: dict[str, Pattern] = {}
        for layer in self.layers:
            if indices := self._indices(layer):
                found[layer] = self._pattern(indices, self.size(layer))
            for part in self._group("places").get(layer, {}):
                found[f"{layer}.{part}"] = self._pattern(f"places/{layer}/{part}", self._shape(layer, part))
        if not found:
            raise Unusable("the update is not sparse")
        return found

    def factors(self, layer: str) -> Factors:
        """The factors of a layer as they were trained, whatever else its update has.

        Raises `Unusable` for a layer without them.
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
        """All singular values of ΔW that its form allows, falling, up to one positive number.

        Raises `Unusable` where ΔW can't be told.
        """
        kinds = self._kinds(layer)
        if indices := self._indices(layer):
            if kinds != {"values"}:
                raise Unusable(
                    f"saved of a sparse layer is {_listed(kinds)}: parts added up by scales that no file has"
                )
            dense = self._scattered(layer, "values", indices, self.size(layer))
            return np.linalg.svd(dense, compute_uv=False)
        if kinds not in ({"A", "B"}, {"A", "B", "e"}):
            raise Unusable(f"saved of a layer is {_listed(kinds)}: its ΔW can't be told without the base model")
        found = self.factors(layer)
        a, b = found.A, found.B if found.e is None else found.B * found.e
        if layer in self._group("start"):
            start = f"/variant/start/{layer}"
            a = np.concatenate([a, self._tensor(f"{start}/A")])
            b = np.concatenate([b, -self._tensor(f"{start}/B")], axis=1)
        # B A = Q_B (R_B R_Aᵀ) Q_Aᵀ: the small matrix in the middle has the singular values.
        right, left = (np.linalg.qr(factor.astype(np.float64)).R for factor in (a.T, b))
        return np.linalg.svd(left @ right.T, compute_uv=False)

    def _indices(self, layer: str) -> str | None:
        """Where in the variant's state the places of a layer are, if its update has places."""
        if layer in self._group("indices"):
            return f"indices/{layer}"
        entry = self._group("layers").get(layer)
        return f"layers/{layer}/indices" if isinstance(entry, dict) and "indices" in entry else None

    def _kinds(self, layer: str) -> set[str]:
        """What is saved of a layer: A, B, e, values, …; pieces of one thing count once."""
        trained = {re.sub(r"\.\d+$", "", part) for part in self._parts.get(layer, [])}
        return trained | set(self._group("frozen").get(layer, {}))

    def _group(self, name: str) -> dict[str, Any]:
        group = self._variant.get(name)
        return group if isinstance(group, dict) else {}

    def _shape(self, layer: str, part: str) -> tuple[int, int]:
        try:
            rows, columns = self._group("shapes")[layer][part]
        except (KeyError, TypeError, ValueError):
            raise Unusable(f"adapter/: places of {layer}.{part} without a shape") from None
        return rows, columns

    def _pattern(self, name: str, shape: tuple[int, int]) -> Pattern:
        """The places in the variant's state under `name`. Raises `Unusable` where `shape` hasn't got them."""
        places = self._tensor(f"/variant/{name}")
        inside = not len(places) or (places.min() >= 0 and places.max() < math.prod(shape))
        if not inside or len(np.unique(places)) < len(places):
            raise Unusable(f"adapter/: {name} are not places of a matrix {shape[0]}×{shape[1]}")
        return Pattern(places, shape)

    def _scattered(self, layer: str, part: str, name: str, shape: tuple[int, int]) -> Array:
        """The dense matrix of which the parameter `part` holds the entries at the places `name`."""
        places, values = self._pattern(name, shape).places, self._tensor(f"/parameters/{layer}.{part}")
        if places.shape != values.shape:
            raise Unusable(f"adapter/: {len(places)} {name} for {len(values)} values")
        dense = np.zeros(math.prod(shape))
        dense[places] = values
        return dense.reshape(shape)

    def _stacked(self, layer: str, part: str, axis: int) -> Array:
        """A factor: a parameter, its pieces one behind the other, or what is not trained of the layer."""
        if part in self._group("frozen").get(layer, {}):
            return self._tensor(f"/variant/frozen/{layer}/{part}")
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
