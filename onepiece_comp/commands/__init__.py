"""The command line's options, a few lines a command; what they call stands in the other folders.

In: arguments. Out: a call of one function.
"""
