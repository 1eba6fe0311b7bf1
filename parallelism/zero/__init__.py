"""ZeRO: DeepSpeed's engine, and torch's ZeroRedundancyOptimizer."""
