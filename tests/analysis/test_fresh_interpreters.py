"""What only fresh interpreters tell: nothing depends on the order of sets or folders, and what verbs import."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.plots import catalogue
from tests.analysis.comparison.conftest import Study
from tests.analysis.interpreter import python
from tests.analysis.plots.conftest import allocate, drawn_in_every_way, log

# Verbs one after the other; each fails if it has imported what it has no need of.
CODE = """if True:
    import contextlib
    import io
    import os
    import sys
    from analysis.commands import cli

    def call(verb, folders, *options, without):
        assert cli.main([verb, *options, *folders[::order]]) == 0
        found = [name for name in ("torch", "transformers", *without) if name in sys.modules]
        assert not found, (verb, *options, *found)

    order = int(sys.argv[1])
    os.mkdir(f"found{order}")
    os.chdir(f"found{order}")
    parts, drawn = ["../part0", "../part1", "../part2"], ["../drawn", "../more"]
    call("compare", ["../part0"], "lora", "head", without=["datasets", "seaborn"])
    call("report", drawn, "--no-pictures", "--output", "plain.html", without=["matplotlib"])
    kinds = "metric-time,learning-curves,rank-map,rank-over-time,sparsity-overlap,delta-spectrum,memory"
    for form, chosen in (("svg", kinds), ("png", "rank-map,delta-spectrum")):
        call("figures", ["../figures"], "--output", form, "--format", form, "--only", chosen, without=[])
    if order == 1:
        with contextlib.redirect_stdout(io.StringIO()):
            call("figures", ["../figures"], "--output", "../all", without=["matplotlib.pyplot"])
    call("report", ["../figures"], "--only", "memory", "--output", "memory.html", without=["matplotlib.pyplot"])
    call("report", drawn, "--only", "learning-curves,rank-map", "--output", "page.html", without=[])
    call("compare", parts, "--all", "lora", "--resamples", "100", "--figure", "cd.svg", without=["datasets"])
"""


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes_in_every_process_and_no_verb_imports_torch(store):
    study = Study(store)
    for variant in ("lora", "head", "sora"):
        for seed in (0, 1, 2):
            for task in ("movie", "opinion", "boolq", "rte", "sst2"):
                study.right(variant, seed, 120 + seed + len(variant), task, of=150, under=f"part{seed}")
    for seed in range(3):
        store.add("lora", seed, 0.7 + seed / 100, under="drawn")
        store.add("sora", seed, 0.8 + seed / 101, under="drawn")
    for seed in range(2):
        folder = store.add("adalora", seed, 0.8, under="more")
        log(folder, {5: 0.5, 10: 0.7}, {5: 0.7, 10: 0.4})
        allocate(folder, (0, [5] * 6), (8, [1, 2, 3, 4, 0, 8]))
    for task in "abcde":
        for variant in ("lora", "sora", "adalora"):
            store.add(variant, 0, task=task, under="drawn")
    drawn_in_every_way(store, under="figures")

    printed = []
    for order, seed in (("1", "1"), ("-1", "2")):
        done = python("-c", CODE, order, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr.decode()
        printed.append((done.stdout, done.stderr))
    first, second = (
        {str(path.relative_to(place)): path.read_bytes() for path in sorted(Path(place).rglob("*.*"))}
        for place in ("found1", "found-1")
    )
    assert list(first) == list(second) and len(first) > 12
    assert [name for name in first if first[name] != second[name]] == []
    assert printed[0] == printed[1]
    assert str(Path.cwd()) not in first["page.html"].decode()

    # Every kind that the runs allow is drawn in both formats.
    files = {path.name for path in Path("all").iterdir()}
    names = {name.rpartition(".")[0] for name in files} - {"captions"}
    assert {name.partition(".")[0] for name in names} == set(catalogue.NAMES) - {"metric-kept-rank", "metric-rate"}
    assert files == {f"{name}.{form}" for name in names for form in ("png", "svg")} | {"captions.md"}
    assert Path("all/rank-map.movie.adalora.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in Path("all/rank-map.movie.adalora.svg").read_bytes()
