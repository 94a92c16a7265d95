"""patches/: the series, its faults, its exact application, and where a hunk belongs in another release."""
