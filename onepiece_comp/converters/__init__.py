"""Other people's logs, one format a file, one table of formats in `convert.py`.

In: CSV, Parquet, RecBole, MovieLens, Amazon, KuaiRand, sequences. Out: events, features and original ids for
`logs.raw_folder`.
"""
