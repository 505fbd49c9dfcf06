"""Rows of a table against each other: what the verb `compare` says.

sides.py        names → rows, and which rows are compared with which
pairs.py        two rows on one task → pairs of runs with one seed
predictions.py  predictions.parquet of the two runs of a pair → the same examples, side by side
outcome.py      pairs → numbers of analysis/stats
verdict.py      numbers → better, equal, or the data don't say: the rule, and a sentence
overall.py      all rows over tasks: ranks
figure.py       the critical-difference diagram
flags.py        what stands below: in what, besides the variant, the two sides differ
words.py        p values and differences as they are printed
text.py, tidy.py    a comparison as Markdown; as csv and json
"""
