"""The competition's platform: its jobs, cache and limits, what is uploaded, and a rehearsal of it all.

In: the platform's environment variables, or a log to rehearse with. Out: checkpoints, answers and upload folders.
"""
