"""Run folders → tables, comparisons, figures and reports: `python -m analysis <verb> <runs…>`.

Everything here is a pure function of what is in the run folders: the same runs give the same
bytes, whatever the order in which the folders are named. It reads records through
`trainer.record` alone and never imports torch, so an answer comes up at once; the one
exception is backbone.py, which says why. scipy, matplotlib and what stands on them are
imported inside the verb that needs them.

    reading.py    many records, fast and small; bases.py: their settings in columns
    listing.py    folders, which of them count, and a list of all that was left out
    points.py     rows of records → points: runs that nothing but their seed tells apart
    spool.py      folders → points and rows that wait in a file; rebuild.py: such a row as a record
    runs.py       the runs of points, in memory or read anew each time
    settings.py   which settings tell runs of one variant apart
    rows.py       points → rows of a table
    tally.py      the runs of a row, each read once (brief.py), → what a table needs of them
    grid.py       rows → cells: mean, sd, n, the best of a column (marks.py), costs (costs.py)
    summary.py    cells → averages in GLUE's way (glue.py) and average ranks
    papers.py     published numbers to stand beside ours, from published/
    notes.py      what stands below a table; provenance.py: code, libraries, machines, protocols
    layout.py     all of it as lines of entries
    markdown.py, latex.py, html.py, tidy.py    a table as text
    columns.py, arrow.py    the rows of a spool as csv, as parquet or as a frame
    table.py, collect.py, readme.py    the verbs of these

    compare.py    the verb `compare`
    comparison/   rows against each other: pairs, verdicts, ranks, what weakens them
    stats/        the statistics of it, on bare arrays

    folder.py, saved.py    what else lies in a run's folder: logs, ranks, the trained update
    measures.py   effective rank, subspace similarity, Jaccard, Pareto
    layer_names.py    dotted names as a grid of modules and blocks
    plots/        one file for each kind of figure
    figures.py    the verb `figures`
    report.py     the verb `report`: all of these in one HTML file
    pages/        the parts of it; its template, style and scripts are in templates/
    backbone.py   a model's weights, decomposed
    spectrum.py   the verb `spectrum`

    dashboard.py, sync.py    the verbs of W&B, which see nothing of the run folders but W&B's own part
    account.py    whether W&B has a key

In Python: `grid.build(rows.build(runs.read(folders)))` has every cell with its mean, sd and
seeds, and every row with its runs; `collect.frame(folders)` is the tidy frame. A further verb is
one file with a `VERB` (see verb.py) and one line in cli.py.
"""
