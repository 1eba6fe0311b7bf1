"""Hand a case over to the trainer that a user already has: a configuration in its own form."""
