"""The step of a Megatron-LM run: its kernels, its messages, its plan. Torch-free."""
