"""A model under test in each folder, which nothing lists: `reference/cases.py` finds those with a `case.py`."""
