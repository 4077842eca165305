"""Columns on disk, and what training may see of them: targets, split, popularity counts, evaluation folder.

In: a log. Out: a split of it, memory-mapped columns of its training part, and the users and candidates to answer.
"""
