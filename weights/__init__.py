"""Exports, evaluates and truncates trained weights: `python -m weights <verb>`.

It opens runs with `trainer.runs.finished`; nothing in `trainer`, `variants` or `analysis` imports it.

    cli.py              the command line; command.py: arguments that verbs share
    export.py           `export`: for PEFT, or as a plain transformers checkpoint
    handover_report.py  `handover.json`, and its text for a terminal
    roundtrip.py        loads what was written and compares it
    predict.py          `predict`: a run on other data; glue.py: GLUE's test sets and the files for its server
    generate.py         `generate`: what a language model writes behind prompts
    harness.py          `evaluate`: a language model on tasks of lm-evaluation-harness
    truncate.py         `truncate`: the metric against the kept rank
    spectrum.py         `spectrum`: singular values of a model's layers; backbone.py, figures.py
    tables.py           Markdown tables
"""
