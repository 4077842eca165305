"""What fits a recommender: batches, optimisers, devices, checkpoints, validation, the loop.

In: a dataset folder and settings. Out: a run folder with a log and the best checkpoint, also after an interruption.
"""
