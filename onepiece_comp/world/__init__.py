"""A synthetic log whose truth is known: users, items, impressions, clicks, and the best answer that there is.

In: a size and a seed. Out: the organisers' files, and beside them the oracle that tells a ceiling.
"""
