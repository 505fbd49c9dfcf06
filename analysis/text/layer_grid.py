"""Arranges dotted names of layers in a grid: modules by rows, blocks by columns.

bert.encoder.layer.3.attention.self.query    block 3    module query
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The position of each layer: `position[name]` is (row, column) among `modules` and `blocks`.

    blocks: numbers in rising order; None, in front, for layers outside the numbered blocks.
    modules: names in the model's order, as short as they can be without being mixed up.
    """

    blocks: tuple[int | None, ...]
    modules: tuple[str, ...]
    position: dict[str, tuple[int, int]]

    @property
    def block_labels(self) -> list[str]:
        return ["–" if block is None else str(block) for block in self.blocks]


def layout(names: Iterable[str], among: Iterable[str] = ()) -> Layout:
    """The grid of these layers, which are in the model's order.

    among: further layers that a module's name is not to be mixed up with.
    """
    names = list(names)
    parts = {name: _split(name) for name in [*names, *among]}
    # The list has a name only if a model has several lists of blocks (encoder, decoder).
    several = len({before for before, block, _ in parts.values() if block is not None}) > 1
    module = {
        name: ".".join(filter(None, [before if several or block is None else "", rest]))
        for name, (before, block, rest) in parts.items()
    }
    modules = list(dict.fromkeys(module[name] for name in names))
    blocks = sorted({parts[name][1] for name in names}, key=lambda block: -1 if block is None else block)
    position = {name: (modules.index(module[name]), blocks.index(parts[name][1])) for name in names}
    everything = list(dict.fromkeys(module.values()))
    return Layout(tuple(blocks), tuple(_shortest(name, everything) for name in modules), position)


def _split(name: str) -> tuple[str, int | None, str]:
    """The parts of a name before its first number, the number, and after it."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return name, None, ""


def _shortest(name: str, among: list[str]) -> str:
    """The shortest dotted suffix of `name` that no other of `among` has."""
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if not any(other != name and (other == end or other.endswith(f".{end}")) for other in among):
            return end
    return name
