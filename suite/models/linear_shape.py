"""Sizes of linear attention (arXiv:2006.16236): chunks of its parallel form, and the state of its recurrent form.
Torch-free."""

from __future__ import annotations

import math

from suite.models.decoder import DecoderSpec, Mixing
from suite.spec import AttentionKernel

#: tokens of a chunk where the sequence can be cut so: as wide as heads usually are, for which the products within
#: chunks, s C (2d + 1) multiply-adds, are about as many as those with states, 2 s d (d + 1)
CHUNK = 64


def chunk_tokens(seq_len: int, kernel: AttentionKernel) -> int:
    """Tokens of a chunk: the divisor of the sequence nearest to 64 by ratio; in the open, the whole sequence."""
    if kernel is AttentionKernel.EAGER:
        return seq_len
    divisors = (size for size in range(1, seq_len + 1) if seq_len % size == 0)
    return min(divisors, key=lambda size: (abs(math.log(size / CHUNK)), size))


def state_elements(spec: DecoderSpec) -> int:
    """Elements that a sequence leaves in all layers, however long it is: for each head the sums of features times
    values, d x d, and of features, d (equations 18 and 19). 0 for a model whose attention is another."""
    if spec.mixing is not Mixing.LINEAR:
        return 0
    return spec.layers * spec.heads * spec.head_dim * (spec.head_dim + 1)
