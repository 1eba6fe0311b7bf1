"""Numbers held as codes of 8 or 4 bits, with a scale and an offset in fp16 for each token, head and group of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.caches.store import Entries, Pairs, index_of, saturated

SCALE_DTYPE = torch.float16
NIBBLE = 4  # bits of a code that shares its byte
#: fp16 has 11 significant bits, and its numbers are nowhere closer than 2^-24: frexp's exponent there is -13
SIGNIFICANT_BITS, LEAST_EXPONENT = 11, -13


class QuantizedStore:
    """Uniform asymmetric codes: x is kept as c = round((x - offset) / scale) in 0 .. n, n = 2^bits - 1, and read as
    x' = offset + c scale, computed in fp32.

    A group is `group` elements of one head of one token. Its offset is its least element rounded down to fp16, and its
    scale (greatest - offset) / n rounded up to fp16, so that the whole group lies within codes 0 .. n, and

        |x - x'| <= scale / 2,  scale <= (greatest - least + u) / n (1 + 2^-10) + 2^-24,

    where u <= max(2^-10 |least|, 2^-24) is fp16's distance at the least element; beside it, the rounding of fp32, and
    of the compute type that is read. A group whose elements are all one number that fp16 has is exact, its scale 0.
    Numbers beyond fp16's largest, 65504, are held as that one; nan makes its group nan. Twice the bits divide the scale
    by 17, and halving a group never widens the spread of its elements (groups: arXiv:2303.06865, section 4.3).
    """

    def __init__(
        self, sequences: int, entries: int, heads: int, width: int, bits: int, group: int, compute: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        rows, groups = (sequences, entries, heads), width // group
        self._codes = torch.empty(*rows, width * bits // 8, dtype=torch.uint8, device=device)
        self._scale = torch.empty(*rows, groups, dtype=SCALE_DTYPE, device=device)
        self._offset = torch.empty(*rows, groups, dtype=SCALE_DTYPE, device=device)
        self._bits, self._group, self._compute = bits, group, compute

    def write(self, at: Entries | Pairs, x: Tensor) -> None:
        """Put x at those entries, as codes."""
        index = index_of(at)
        self._codes[index], self._scale[index], self._offset[index] = self._encoded(x)

    def read(self, at: Entries) -> Tensor:
        """Those entries' numbers, in new memory."""
        codes = self._codes[:, at]
        if self._bits == NIBBLE:
            codes = torch.cat((codes & 15, codes >> NIBBLE), dim=-1)
        grouped = codes.unflatten(-1, (-1, self._group)).float()
        scale, offset = (part[:, at].float().unsqueeze(-1) for part in (self._scale, self._offset))
        return torch.addcmul(offset, grouped, scale).flatten(-2).to(self._compute)

    def append(self, x: Tensor) -> None:
        """Copy what is there and x's codes into new arrays."""
        held, new = (self._codes, self._scale, self._offset), self._encoded(x)
        self._codes, self._scale, self._offset = (torch.cat(pair, dim=1) for pair in zip(held, new, strict=True))

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i hold what sequence rows[i] does."""
        self._codes, self._scale, self._offset = (part[rows] for part in (self._codes, self._scale, self._offset))

    @property
    def payload(self) -> Tensor:
        """The codes: a byte each, or the first half of a head in the low four bits and the second in the high."""
        return self._codes

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """Scales and offsets."""
        return self._scale, self._offset

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and offsets of x."""
        grouped = saturated(x.float(), SCALE_DTYPE).unflatten(-1, (-1, self._group))
        least, greatest = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        levels = 2**self._bits - 1
        offset = _rounded_down(least)
        scale = -_rounded_down((offset - greatest) / levels)
        codes = ((grouped - offset) / scale.where(scale > 0, 1.0)).round()
        codes = codes.flatten(-2).to(torch.uint8)
        if self._bits == NIBBLE:
            low, high = codes.chunk(2, dim=-1)
            codes = low | (high << NIBBLE)
        return codes, scale.squeeze(-1).to(SCALE_DTYPE), offset.squeeze(-1).to(SCALE_DTYPE)


def _rounded_down(x: Tensor) -> Tensor:
    """The greatest of fp16's numbers that is at most x, in fp32; |x| at most 65504. Around x they are multiples of a
    power of two, so that no step but the floor rounds."""
    _, exponent = torch.frexp(x)
    distance = torch.ldexp(torch.ones_like(x), exponent.clamp(min=LEAST_EXPONENT) - SIGNIFICANT_BITS)
    return (x / distance).floor() * distance
