"""Training of what orders a funnel's survivors.

In: a checkpoint and the dataset that it was trained on. Out: a ranker folder for `infer.ranker`.
"""
