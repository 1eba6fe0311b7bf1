"""Caches of a served model, as tensors: what memory/caches says in bytes, and what attention reads."""
