"""A folder or a run as figures, warnings, plots and a page of HTML.

In: artefacts of other folders, read only. Out: tables for a terminal and sections of a page.
"""
