"""How fast a checkpoint is served, beside Transformers."""
