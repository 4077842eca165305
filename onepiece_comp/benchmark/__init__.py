"""Public benchmarks, leave-one-out on whole catalogues, with models of their own.

In: sequences of a public data set and a protocol's name. Out: a result file a row and seed, and a page.
"""
