"""The metric against the rank to which a trained ΔW is truncated, from `truncation.json`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from analysis.plots.curves import MOST, Curve, average, draw
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, pages, read, seeds
from analysis.records import run_files


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        y, scale = study.axis(column.metric)
        panels: dict[str, tuple[Curve, Curve]] = {}  # by row: metric, error
        trained: dict[str, str] = {}
        drawn: list[Group] = []
        for group in groups:
            runs, left_out = read(group, lambda run: run_files.truncation(run.folder))
            yield from left_out
            cuts = [{kept.rank or 0: kept for kept in found} for _, (_, found) in runs]
            quality = average(group, [{rank: scale * kept.metric for rank, kept in cut.items()} for cut in cuts])
            error = average(group, [{rank: kept.relative_error for rank, kept in cut.items()} for cut in cuts])
            if quality is None or error is None:
                if runs:
                    yield LeftOut(group.title, "truncation.json: no rank that all of its seeds were cut down to")
                continue
            panels[group.row.label] = (quality, error)
            whole = statistics.fmean(scale * kept.metric for _, (kept, _) in runs)
            trained[group.row.label] = f"{group.row.label} {whole:.4g}"
            drawn.append(group)
        for ending, page in pages(drawn, MOST):
            labels = [group.row.label for group in page]
            caption = (
                f"{column.metric or 'metric'} on {column.task} after ΔW of every layer was replaced by its best "
                "approximation of the kept rank, without more training, and the relative error of that over all layers "
                f"as one matrix: {seeds(panels[label][0].n for label in labels)}. "
                f"As trained: {', '.join(trained[label] for label in labels)}."
            )
            curves = [
                (f"{page[0].task}: {y}", [panels[label][0] for label in labels]),
                ("relative error of ΔW", [panels[label][1] for label in labels]),
            ]
            draws = partial(draw, curves, "kept rank of every layer")
            yield Picture(file_name("metric-kept-rank", column.task, ending), caption, draws)


KINDS = (Kind("metric-kept-rank", "the metric after ΔW is cut down to lower ranks", _pictures),)
