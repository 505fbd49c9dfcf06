"""Statistics of a comparison: arrays in, numbers out. Nothing here knows of runs, rows or files.

    seeds.py      two methods over the same seeds: paired t, sign-flip test, effect size
    examples.py   two methods over the same examples: bootstrap, McNemar's test
    additive.py   a metric that is a formula of sums over examples
    metrics.py    a metric over many resamples of the examples at once
    family.py     Holm's correction for many tests
    ranks.py      many methods over tasks: average ranks, Friedman, Nemenyi
    agreement.py  allocations of ranks: their overlap against chance

The formulas are scipy's, statsmodels' and scikit-posthocs'; what is said here is which one is
used for what, and why. `LEVEL` and `ALPHA` are the only two levels, and each follows the other.
"""

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # 1 − LEVEL: what an adjusted p stays below where a difference is claimed
