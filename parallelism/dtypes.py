"""The ledger's number formats as torch's."""

from __future__ import annotations

import torch

from suite.operators import DType

TORCH_DTYPES = {DType.FP32: torch.float32, DType.BF16: torch.bfloat16, DType.FP16: torch.float16}


def torch_dtype(kind: DType) -> torch.dtype:
    """torch's name of a format that models train in."""
    return TORCH_DTYPES[kind]
