"""Tensors: blocks, towers, heads, losses, the recommender made of them, and the ranker. No files, no loop.

In: a batch, a schema and settings. Out: losses with gradients, states, scores.
"""
