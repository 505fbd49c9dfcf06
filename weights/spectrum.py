"""`python -m weights spectrum`: the ranks of a backbone's weights, before training.

The one verb that needs torch: it decomposes weights, as the methods do (see backbone.py).
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from analysis.commands.command import Verb, chosen, emit, write
from analysis.commands.figures import FORMATS
from analysis.errors import AnalysisError
from analysis.tables.formats.markdown import escape, table
from analysis.text.formulas import inert
from analysis.text.numbers import exact, human

if TYPE_CHECKING:
    from weights.backbone import Layer

T = TypeVar("T", int, float)

METHODS = ("svd", "randomized_svd", "als", "nmf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `spectrum`."""
    parser.add_argument("model", help="a folder as save_pretrained wrote it, or a name in conf/model (minilm)")
    parser.add_argument(
        "--targets", default="", metavar="NAME,…", help="as a variant's targets; default: every matrix in a block"
    )
    parser.add_argument("--exclude", default="", metavar="NAME,…", help="layers to leave out, named in the same way")
    parser.add_argument("--ranks", default="4,16", metavar="R,…", help="ranks of the decompositions; default: 4,16")
    parser.add_argument(
        "--energy", default="0.9,0.99", metavar="SHARE,…", help="shares of the energy; default: 0.9,0.99"
    )
    parser.add_argument("--methods", metavar="NAME,…", help=f"{', '.join(METHODS)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random starts of the decompositions")
    parser.add_argument("--override", action="append", default=[], metavar="NAME=VALUE", help="model.id=…, for hub")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for table, csv and figures; default: none")
    parser.add_argument("--format", default=",".join(FORMATS), metavar="FORMAT,…", help="png, svg; default: both")


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes table, csv and figures to the output folder. Raises `AnalysisError`."""
    methods = chosen("--methods", options.methods, METHODS)
    formats = chosen("--format", options.format, FORMATS)
    ranks = _numbers("--ranks", options.ranks, int, lambda rank: rank >= 1, "whole numbers ≥ 1")
    shares = _numbers("--energy", options.energy, float, lambda share: 0 < share < 1, "shares between 0 and 1")
    if not 0 <= options.seed < 2**32:
        raise AnalysisError(f"--seed: {options.seed}, allowed: 0 ≤ seed < 2³²")
    from tqdm import tqdm

    from weights import backbone

    folder = backbone.locate(options.model, options.override)
    names = backbone.names(folder, _list(options.targets), _list(options.exclude))
    found = backbone.analyse(names, ranks, shares, methods, options.seed)
    layers = list(tqdm(found, total=len(names), unit="layer", file=sys.stderr, disable=None))
    text = render(layers, ranks, methods)
    emit(text, None)
    if options.output is None:
        return 0
    from analysis.plots.style import encode
    from weights.figures import pictures

    output: Path = options.output
    model = Path(options.model).name or options.model
    lines = [f"# Spectrum of {escape(model)}", "", text]
    for picture in pictures(model, layers, shares, methods):
        figure = picture.draw()
        for form in formats:
            write(output / f"{picture.name}.{form}", encode(figure, form))
        lines += [f"![{escape(picture.name)}]({picture.name}.{formats[0]})", "", escape(picture.caption), ""]
    write(output / "spectrum.md", "\n".join(lines).encode())
    write(output / "spectrum.csv", as_csv(layers, ranks, methods).encode())
    return 0


def render(layers: Sequence[Layer], ranks: Sequence[int], methods: Sequence[str]) -> str:
    """A Markdown table with one row for each layer and their mean, then the definitions of its columns."""
    rules = list(layers[0].ranks)
    pairs = [(method, rank) for rank in ranks for method in methods]
    head = ["layer", "size", "effective rank", *(f"rank: {rule}" for rule in rules)]
    head += [f"{method.replace('_', ' ')} r={rank}" for method, rank in pairs]
    body = []
    for layer in layers:
        line = [escape(layer.name), f"{layer.shape[0]}×{layer.shape[1]}", f"{layer.effective_rank:.1f}"]
        line += [str(layer.ranks[rule]) for rule in rules]
        line += [f"{layer.errors[pair]:.4f}" if pair in layer.errors else "" for pair in pairs]
        body.append(line)
    mean = ["mean", "", f"{statistics.fmean(layer.effective_rank for layer in layers):.1f}"]
    mean += [f"{statistics.fmean(layer.ranks[rule] for layer in layers):.1f}" for rule in rules]
    for pair in pairs:
        errors = [layer.errors[pair] for layer in layers if pair in layer.errors]
        mean.append(f"{statistics.fmean(errors):.4f}" if errors else "")
    lines = table(head, [*body, mean] if len(layers) > 1 else body)
    cost = {rule: sum(layer.parameters(layer.ranks[rule]) for layer in layers) for rule in rules}
    cost["effective rank, rounded up"] = sum(layer.parameters(math.ceil(layer.effective_rank)) for layer in layers)
    notes = [
        "Effective rank: exp of the entropy of σ/Σσ. Ranks: the fewest directions that hold a share of the energy "
        "‖W‖²; the singular values above Gavish and Donoho's threshold for a low-rank matrix in white noise.",
        "Factors of these ranks have so many parameters: "
        + ", ".join(f"{rule} {human(count)}" for rule, count in cost.items())
        + f"; the {len(layers)} weights themselves {human(sum(math.prod(layer.shape) for layer in layers))}.",
        "The other columns: ‖W − Wᵣ‖ / ‖W‖ (Frobenius) of a decomposition of rank r; svd is the truncated SVD, "
        "the best there is.",
    ]
    blank = [f"{layer.name} ({min(layer.shape)})" for layer in layers if min(layer.shape) < max(ranks)]
    if blank:
        notes.append(f"Blank: the weight has fewer directions than that: {', '.join(blank)}.")
    return "\n".join([*lines, "", *(f"- {escape(note)}" for note in notes)]) + "\n"


def as_csv(layers: Sequence[Layer], ranks: Sequence[int], methods: Sequence[str]) -> str:
    """The csv: one row for each layer, with all digits."""
    rules = list(layers[0].ranks)
    pairs = [(method, rank) for rank in ranks for method in methods]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["layer", "rows", "columns", "sigma_1", "frobenius", "effective_rank"]
        + ["rank_" + _column(rule) for rule in rules]
        + [f"error_{method}_{rank}" for method, rank in pairs]
    )
    for layer in layers:
        s = layer.singular_values
        numbers = [float(s[0]), float((s**2).sum() ** 0.5), layer.effective_rank]
        writer.writerow(
            [inert(layer.name), *layer.shape, *map(exact, numbers), *(layer.ranks[rule] for rule in rules)]
            + [exact(layer.errors.get(pair)) for pair in pairs]
        )
    return file.getvalue()


def _column(rule: str) -> str:
    """The name of a rule in csv: energy_0.9, gavish_donoho."""
    share, energy, _ = rule.partition(" % energy")
    return f"energy_{float(share) / 100:g}" if energy else rule.lower().replace("-", "_")


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str, kind: type[T], good: Callable[[T], bool], allowed: str) -> list[T]:
    """The numbers of a list, without repetitions."""
    try:
        numbers = [kind(part) for part in _list(text)]
    except ValueError:
        numbers = []
    if not numbers or not all(map(good, numbers)):
        raise AnalysisError(f"{option}: {text!r}, allowed: {allowed}, separated by commas")
    return list(dict.fromkeys(numbers))


VERB = Verb(
    name="spectrum",
    summary="ranks of a backbone's weights, before training",
    description=(
        "Prints a line for each weight matrix of a model: its effective rank, the ranks that rules recommend, and\n"
        "the errors of truncated SVD, randomised SVD, alternating least squares and NMF at given ranks.\n"
        "--output also writes spectrum.csv and figures."
    ),
    example=(
        "python -m weights spectrum minilm --output spectrum\n"
        "python -m weights spectrum my/model --targets query,value --ranks 8 --methods svd,nmf"
    ),
    add_arguments=add_arguments,
    run=run,
)
