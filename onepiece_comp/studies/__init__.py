"""Many runs beside each other: ladders of settings, sizes and laws, tokenizers, finished runs in pairs.

In: a file of rows, or finished runs. Out: tables with intervals and a page.
"""
