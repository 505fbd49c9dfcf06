"""The parts of the page that the verb `report` writes.

headline.py   the table, with what its rows can be sorted and filtered by
verdicts.py   every row against a baseline
records.py    all records, column by column, as small as JSON makes them
journals.py   learning curves and ranks of layers, for the page of each run
tracker.py    where a run can be seen on a dashboard
images.py     pictures, inside the page
repeat.py     the overrides that repeat a run of a method from outside
origin.py     what made the runs, and what makes the page once more
page.py       all of it as one HTML file, from templates/

What a record holds is text that anyone may have written. In the page it is escaped by the template, or it is
JSON that scripts put into text nodes and nowhere else.
"""
