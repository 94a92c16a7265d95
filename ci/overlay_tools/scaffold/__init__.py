"""What starts a model of one's own: its files, from templates and from what its base is."""
