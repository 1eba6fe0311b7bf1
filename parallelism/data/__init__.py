"""Data parallelism on torch: DDP, FSDP2, HSDP, flat buckets."""
