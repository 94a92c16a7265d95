"""Whether a checkpoint is served as Transformers computes it, and where the two part."""
