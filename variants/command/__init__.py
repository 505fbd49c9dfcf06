"""The command line `python -m variants <verb> <run>`: what can be done with a finished run.

The library `variants` knows torch and nothing of trainers. This package is no part of it: it opens runs with
`trainer.finished`, which it imports when a verb is carried out, and nothing in the library imports it.

    cli.py        finds the verb, shows errors in one line
    export.py     `export`: for PEFT, or as a plain transformers checkpoint
    report.py     `handover.json`, and what a terminal shows of it
    checked.py    what was written, loaded again and compared
    truncate.py   `truncate`: the metric against the rank that is kept
    verb.py       what a verb is
    table.py      rows as Markdown
"""
