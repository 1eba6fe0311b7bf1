"""Megatron-LM: a run, and how its parameters are spread over ranks. Torch-free."""
