"""Tasks: how a family's training examples are made of a corpus. One line a task."""
