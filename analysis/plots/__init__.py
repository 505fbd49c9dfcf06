"""Figures: one file for each kind, each a function from numbers to a matplotlib figure.

    catalogue.py the kinds, and all pictures of a study
    kind.py      what a kind is; which runs a picture is of
    style.py     colours, marks, fonts; how a file is written
    heat.py, by_module.py    maps of layers, panels of modules

`analysis.commands.figures` writes the files; nothing here reads torch, draws on a screen or
changes matplotlib's settings for others.
"""
