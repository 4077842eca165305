"""The one error that a user of the toolkit is meant to see: place, found, expected, what to do."""


class InputError(Exception):
    """Something from outside is wrong: a file, a value, an option. The command line ends with exit code 2.

    >>> str(InputError("seq.jsonl:3", found="an event of 5 fields", expected="6", do="write it again"))
    'seq.jsonl:3: found an event of 5 fields, expected 6; write it again'
    """

    def __init__(self, place: object, *, found: str, expected: str, do: str):
        self.place, self.found, self.expected, self.do = str(place), found, expected, do
        super().__init__(f"{place}: found {found}, expected {expected}; {do}")


class StaleRun(InputError):
    """A run that cannot be gone on with, whatever is tried: of other settings, or its state cannot be read."""


class Diverged(InputError):
    """A training that diverged: its loss is no number, or far above where it began."""
