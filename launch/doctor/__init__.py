"""`trd-ray doctor`: is this machine fit for a run, and do engine, teacher and learner agree?

Each check is one small function that returns a `Finding`; none stops the others. `machine_checks.py` lists
those of the machine, `parity.py` those that need the real actors.
"""
