"""Semantic ids: vectors quantised, collisions resolved, new items added.

In: vectors of items. Out: a tokenizer folder with a tuple of codes for every item, no two alike unless asked for.
"""
