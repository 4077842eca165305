"""From a checkpoint to ten items a user: retrieve, generate, unite, fuse, filter, re-rank, fill.

In: a checkpoint, users and candidates. Out: ranked lists with what each step kept.
"""
