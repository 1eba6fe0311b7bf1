"""Bytes of a served model's cache, by formula: what a rank stores, and what one decode step reads. Torch-free."""
