"""The competition's log in every form that it comes in: JSON lines, pickles, embeddings, the public Parquet release.

In: files of the organisers' layout. Out: blocks of columns, indexes, features and embeddings, checked; and the same
files written. No other folder knows the platform's words.
"""
