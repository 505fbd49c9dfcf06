"""Run folders → tables, comparisons and figures: `python -m analysis <verb> <runs…>`.

Everything here is a pure function of what is in the run folders: the same runs give the same
bytes, whatever the order in which the folders are named. It reads records through
`trainer.record` alone and never imports torch, so an answer comes up at once; the one
exception is backbone.py, which says why. scipy, matplotlib and what stands on them are
imported inside the verb that needs them.

    runs.py       folders → trusted records, and a list of all that was left out
    settings.py   which settings tell runs of one variant apart
    rows.py       records → rows of a table
    grid.py       rows → cells: mean, sd, n, the best of a column, costs
    notes.py      what stands below a table
    markdown.py, latex.py, tidy.py    a table as text
    table.py      the verb `table`
    compare.py    the verb `compare`
    comparison/   rows against each other: pairs, verdicts, ranks, what weakens them
    stats/        the statistics of it, on bare arrays

    folder.py, saved.py    what else lies in a run's folder: logs, ranks, the trained update
    measures.py   effective rank, subspace similarity, Jaccard, Pareto
    layer_names.py    dotted names as a grid of modules and blocks
    plots/        one file for each kind of figure
    figures.py    the verb `figures`
    backbone.py   a model's weights, decomposed
    spectrum.py   the verb `spectrum`

A further verb is one file with a `VERB` (see verb.py) and one line in cli.py.
"""
