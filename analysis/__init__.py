"""Run folders → tables and comparisons: `python -m analysis <verb> <runs…>`.

Everything here is a pure function of the records in the run folders: the same records give
the same bytes, whatever the order in which the folders are named. It reads through
`trainer.record` alone and never imports torch, so an answer comes up at once. scipy and what
stands on it are imported inside the verb that needs them.

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

A further verb is one file with a `VERB` (see verb.py) and one line in cli.py.
"""
