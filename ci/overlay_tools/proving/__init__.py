"""The stages of a release's tests, their results, and a run over all releases."""
