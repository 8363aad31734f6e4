"""A catalogue of bad input: what a person, a crash or a stranger's file may give the command line.

Each case is a command line and what its one sentence must say. `tests/cli/test_errors.py` runs
them all.
"""
