"""How large the trivial modules of the probes are. Torch-free."""

from __future__ import annotations

#: side of every parameter
SIDE = 16
#: parameters of the small and the large unit; units of a tall stack; parameters that an optimizer updates
FEW, MANY, TALL = 1, 9, 8
SOME, LOTS = 8, 40
#: operators in a checkpointed region
SHORT, LONG = 4, 16
#: payload of one fp32 parameter
UNIT_BYTES = SIDE * SIDE * 4
#: side and number of the linears under DeepSpeed's engine
ENGINE_SIDE, ENGINE_FEW, ENGINE_MANY = 64, 4, 16
#: stages and micro-batches of a pipeline on one rank
STAGES, FEW_BATCHES, MANY_BATCHES = 3, 2, 6
#: messages that a rank sends, and receives, in a probe; bytes of one
MESSAGES, SMALL_MESSAGE, LARGE_MESSAGE = 8, 4096, 262144
#: halves of blocks in a stack under tensor parallelism
HALVES = 8
#: operators beside the use of each parameter of a unit: with them a unit takes about as long as a small block
WORK = 6
