"""The verb `kv`: what serving a model takes, by formula."""
