"""Model family -> its operator ledger. One line a family."""

from __future__ import annotations

from collections.abc import Callable

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute
from suite.models import ModelSpec
from suite.models.bert_ledger import bert_ledger
from suite.models.decoder_ledger import decoder_ledger
from suite.models.t5_ledger import t5_ledger
from suite.models.transformer_ledger import transformer_ledger
from suite.operators import Ledger
from suite.share import WHOLE, Share
from suite.spec import Workload
from suite.tape import Backend, Numerics

LEDGERS: dict[str, Callable[..., Ledger]] = {
    "decoder": decoder_ledger,
    "bert": bert_ledger,
    "transformer": transformer_ledger,
    "t5": t5_ledger,
}


def ledger_of(
    spec: ModelSpec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    threads: int = 1,
    tiles: bool = False,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch, of the whole model or of a rank's share of it. `threads` and `tiles` matter to the
    CPU's kernels alone."""
    return LEDGERS[spec.family](spec, workload, recompute, numerics, backend, CpuWorkspace(threads, tiles), share)
