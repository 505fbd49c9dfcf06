"""Dashboards: what a run logs, shown elsewhere while it goes.

    run's process                              tracker's process (host.py)
    guard.py: starts it, and kills it when  →  reads metrics.jsonl and ranks.jsonl as they grow (tail.py)
    it takes longer than its time limit        and gives their lines to the tracker (wandb.py, trackio.py)

A tracker is a view of the run's own files and runs in a process of its own. So the two can't disagree, a step
costs the same with and without one, the libraries' threads, random draws, memory and exit handlers are none of
the run's, and whatever breaks over there, a hang included, is one warning here.

A new one is a class that is a `Tracker` (tracker.py) and a YAML in conf/tracker with its `_target_`.
"""
