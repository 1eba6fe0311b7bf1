"""A case as Megatron-LM's arguments: those of its `pretrain_gpt.py`, part by part, and the script that starts it."""
