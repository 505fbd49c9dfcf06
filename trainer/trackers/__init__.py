"""Dashboards that show a run's logs while it runs.

    run's process                              tracker's process (host.py)
    guard.py: starts it, and kills it when  →  reads metrics.jsonl and ranks.jsonl as they grow (tail.py)
    it takes longer than its time limit        and gives their lines to the tracker (wandb.py, trackio.py)

A tracker reads the run's own files in a process of its own. So dashboard and files can't disagree, and a step takes
the same time with and without a tracker. The libraries' threads, random numbers, memory and exit handlers stay out of
the run's process, and any failure of a tracker, even a hang, causes one warning.

To add a tracker, write a class with the methods of `Tracker` (tracker.py) and a YAML in conf/tracker that names it.
"""
