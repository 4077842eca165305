"""The judge, which knows nothing of models: metrics, intervals, calibration, baselines.

In: ranked lists and true targets. Out: HR, NDCG and score with confidence intervals, and differences paired by user.
"""
