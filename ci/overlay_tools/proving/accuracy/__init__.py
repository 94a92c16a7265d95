"""How well a checkpoint does on tasks, beside Transformers."""
