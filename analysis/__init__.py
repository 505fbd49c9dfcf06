"""Run folders → tables, comparisons, figures and reports: `python -m analysis <verb> <runs…>`.

Everything here is a pure function of what is in the run folders: the same runs give the same
bytes, whatever the order in which the folders are named. Records are read through
`trainer.record` alone, and torch is never imported, so an answer comes up at once. scipy,
matplotlib and what stands on them are imported inside the command that needs them.

The rooms, each of which knows those below it and none above:

    commands/     one file for each command; cli.py lists them, command.py says what one is
    report/       the parts of the HTML page; its template, style and scripts are in templates/
    comparison/   rows against each other: pairs, verdicts, ranks, what weakens them
    plots/        one file for each kind of figure; style.py is what they share
    tables/       points -> rows.py -> aggregate.py (over seeds) -> cells.py -> sheet.py -> formats/
                      costs.py      the columns of costs: a new one is a line there
                      best.py       which entries are bold; averages.py, glue.py: over tasks
                      published.py  other people's numbers, from papers/
                      footnotes.py  the lines below a table
    records/      run folders -> runs
                      discovery.py  the folders, which of them count, and what was left out
                      runs.py       every record, read once; grouping.py: points, runs alike but for the seed
                      settings.py   which settings tell runs of one variant apart
                      provenance.py code, libraries, machines and protocols, and what of it is mixed
                      run_files.py, adapter_file.py    logs, ranks, the trained update
                      columns.py    runs as csv, as parquet or as a frame
    stats/        statistics on bare arrays
    text/         numbers, sentences and sorting

In Python: `cells.build(rows.build(runs.read(folders)))` has every cell with its mean, sd and
seeds, and every row with its runs; `collect.frame(folders)` is the tidy frame. A further command
is one file with a `VERB` (see commands/command.py) and one line in commands/cli.py.
"""
