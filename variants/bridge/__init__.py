"""PEFT's methods as the bridge (`variants.peft`) supports them, and what it refuses.

methods.py   every method: which modules it is for, which options are refused or ignored
options.py   checks of a method's options and targets, before a model is loaded
wrapped.py   checks of the model that PEFT has wrapped, before the first step
budget.py    schedules and budgets of PEFT's two allocators
"""
