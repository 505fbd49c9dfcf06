"""Trained weights: what a finished run's adapter is, and what can be made of it. `python -m weights <verb>`.

It opens runs with `trainer.runs.finished`; nothing in `trainer`, `variants` or `analysis` imports it.

    cli.py              finds the verb, shows errors in one line; command.py: arguments that verbs share
    export.py           `export`: for PEFT, or as a plain transformers checkpoint
    handover_report.py  `handover.json`, and what a terminal shows of it
    roundtrip.py        what was written, loaded again and compared
    predict.py          `predict`: a run on other data; glue.py: GLUE's test sets and the files that its server takes
    truncate.py         `truncate`: the metric against the rank that is kept
    spectrum.py         `spectrum`: singular values of a model's layers; backbone.py, figures.py
    tables.py           rows as Markdown
"""
