"""Experiment sweeps: which trials there are, what has become of them, and how they compare.

Nothing here starts a process or knows a cluster; `launch/sweep/` runs the trials.
"""
