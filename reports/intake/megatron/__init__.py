"""Megatron-LM's arguments as a Case: of a shell script, of a plain list, or of the list that its logs begin with."""
