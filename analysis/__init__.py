"""Makes tables, comparisons, figures and reports from run folders: `python -m analysis <verb> <runs…>`.

Outputs are pure functions of the run folders: the same runs give the same bytes, in whatever order
the folders are named. Records are read with `trainer.record`, and torch is never imported, so that
commands start fast. scipy and matplotlib are imported only by the commands that need them.

The packages, each of which imports only those below it:

    commands/     one file for each command; cli.py lists them, command.py says what one is
    report/       the parts of the HTML page; its template, style and scripts are in templates/
    comparison/   compares rows: pairs, verdicts, ranks, flags
    plots/        one file for each kind of figure; catalogue.py lists them, style.py is shared
    tables/       points -> rows.py -> aggregate.py (over seeds) -> cells.py -> sheet.py -> formats/
                      costs.py      the columns of costs: a new one is a line there
                      best.py       which entries are bold; averages.py, glue.py: over tasks
                      published.py  numbers of papers, from papers/
                      footnotes.py  the lines below a table
    records/      run folders -> runs
                      discovery.py  which folders count, and what is skipped
                      runs.py       reads every record once; grouping.py: points, runs that differ in their seed
                      settings.py   which settings distinguish runs of one variant
                      provenance.py code, libraries, machines and protocols, and which are mixed
                      run_files.py, adapter_file.py    logs, ranks, the trained update
                      columns.py    runs as csv, as parquet or as a frame
    stats/        statistics on bare arrays
    text/         numbers, sentences and sorting

In Python, `cells.build(rows.build(runs.read(folders)))` returns the cells with mean, sd and seeds,
and `collect.frame(folders)` the tidy frame. A new command is a file with a `VERB` (see
commands/command.py) and a line in commands/cli.py.
"""
