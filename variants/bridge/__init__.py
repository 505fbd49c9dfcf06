"""What the bridge to PEFT (`variants.peft`) knows of PEFT's methods, and what it refuses.

methods.py   every method: what it is made for, what can't be had, which options nothing reads
options.py   what is wrong with a method's options and targets, before a model is there
wrapped.py   what is wrong with what PEFT made of a model, before a step is made
budget.py    the schedules and budgets of PEFT's two allocators
"""
