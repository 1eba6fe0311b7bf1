"""A served case on one rank: what its answers are worth, and how they are made."""
