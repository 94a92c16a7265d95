"""patches/: the series and its faults, its exact application, and where a hunk belongs in another release."""
