"""Compares rows of a table, for the verb `compare`.

sides.py        finds rows by name and decides which are compared
pairs.py        pairs the runs of two rows on one task by seed
predictions.py  aligns the predictions.parquet of two runs by example
outcome.py      computes the statistics of pairs, with analysis/stats
verdict.py      decides: better, equal, or the data don't say; and writes the sentence
overall.py      ranks all rows over tasks
figure.py       the critical-difference diagram
flags.py        writes the lines below: definitions, and everything that weakens the comparison
words.py        formats p values and differences
text.py, tidy.py    write a comparison as Markdown; as csv and json
"""
