"""A quantity over many runs, by commit."""
