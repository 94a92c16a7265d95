"""What a person does with hooks: edit, export and port, over a worktree."""
