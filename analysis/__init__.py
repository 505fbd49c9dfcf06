"""Run folders → tables: `python -m analysis <verb> <runs…>`.

Everything here is a pure function of the records in the run folders: the same records give
the same bytes, whatever the order in which the folders are named. It reads through
`trainer.record` alone and never imports torch, so an answer comes up at once.

    runs.py       folders → trusted records, and a list of all that was left out
    settings.py   which settings tell runs of one variant apart
    rows.py       records → rows of a table
    grid.py       rows → cells: mean, sd, n, the best of a column, costs
    notes.py      what stands below a table
    markdown.py, latex.py, tidy.py    a table as text
    table.py      the verb `table`

A further verb is one file with a `VERB` (see verb.py) and one line in cli.py.
"""
