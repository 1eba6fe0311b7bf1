"""The styles of a tensor-parallel plan: how a module's weights are divided, and what its forward pass then does.

Weights become DTensors, so that FSDP2, clipping, optimizers and checkpoints know what they are parts of. The arithmetic
is local: a rank runs the kernels that one process would run, on its own columns, rows or heads, and the only
collectives are those of Regions. (Torch's own styles run every operator as a DTensor's, and reduce the gradient of what
the query, key and value projections read once for each of them.)
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from parallelism.tensor.plan import Style
from parallelism.tensor.regions import Regions
from suite.models.experts_module import ExpertWeights, MixtureMLP, expert_outputs
from suite.share import own_rows

Forward = Callable[..., Tensor]


class _RegionStyle(ParallelStyle):
    """A style that needs the regions."""

    def __init__(self, regions: Regions) -> None:
        super().__init__()
        self.regions = regions

    def _divide(self, module: nn.Module, dims: dict[str, int], forward: Forward) -> nn.Module:
        """Divide parameters along a dimension each; the others stay whole on every rank."""
        for name, dim in dims.items():
            parameter = getattr(module, name)
            if parameter is not None:
                # every rank has built the whole of it from one seed: each keeps its part, nothing is sent
                part = distribute_tensor(parameter.detach(), self.regions.mesh, [Shard(dim)], src_data_rank=None)
                setattr(module, name, nn.Parameter(part))
        module.forward = MethodType(forward, module)  # type: ignore[method-assign]
        return module


class Columns(_RegionStyle):
    """A projection of which each rank has some output features: [b, s, h] -> [b, s, n/t]."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return self._divide(module, {"weight": 0, "bias": 0}, _columns)


class Rows(_RegionStyle):
    """A projection of which each rank reads some input features: the ranks' results are summed, then the bias added."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def rows(module: nn.Linear, x: Tensor) -> Tensor:
            y = self.regions.leave(F.linear(x, local(module.weight)))
            return y if module.bias is None else y + module.bias.to(y.dtype)

        return self._divide(module, {"weight": 1}, rows)


class OwnRows(_RegionStyle):
    """A projection of which each rank reads some input features, and whose results something around it sums."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def rows(module: nn.Linear, x: Tensor) -> Tensor:
            return F.linear(x, local(module.weight))

        return self._divide(module, {"weight": 1}, rows)


class DividedExperts(_RegionStyle):
    """Experts of each of which every rank has some channels."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def outputs(module: ExpertWeights, rows: Tensor, counts: Tensor) -> Tensor:
            return expert_outputs(rows, counts, *(local(each) for each in (module.gate, module.up, module.down)))

        return self._divide(module, {"gate": 1, "up": 1, "down": 2}, outputs)


class Around(_RegionStyle):
    """A mixture of experts: it reads the whole stream, and its output is summed once. Each rank counts its part of the
    balance loss, which all of them compute alike."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, MixtureMLP)
        module.auxiliary_share /= self.regions.ranks
        module.register_forward_pre_hook(lambda _, given: (self.regions.enter(given[0]), *given[1:]))
        module.register_forward_hook(lambda _, __, output: self.regions.leave(output))
        return module


class VocabularyRows(_RegionStyle):
    """An embedding of which each rank has some rows: it looks up its own, and the ranks' results are summed."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def look_up(module: nn.Embedding, ids: Tensor) -> Tensor:
            mine = own_rows(module.num_embeddings, self.regions.ranks, self.regions.rank)
            is_foreign = (ids < mine.start) | (ids >= mine.stop)
            x = F.embedding((ids - mine.start).masked_fill_(is_foreign, 0), local(module.weight))
            return self.regions.leave(x.masked_fill(is_foreign.unsqueeze(-1), 0.0))

        return self._divide(module, {"weight": 0}, look_up)


class OwnPositions(_RegionStyle):
    """A table of positions: under sequence parallelism it is asked for this rank's part of them."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.regions.sequence_parallel:
            module.register_forward_pre_hook(
                lambda _, given: (given[0].chunk(self.regions.ranks, dim=-1)[self.regions.rank],)
            )
        return module


class EnterBefore(_RegionStyle):
    """A module whose input is the stream and whose first operators are column-parallel."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(lambda _, given: (self.regions.enter(given[0]), *given[1:]))
        return module


class EnterAfter(_RegionStyle):
    """The final norm: its output is what the column-parallel head reads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_hook(lambda _, __, output: self.regions.enter(output))
        return module


def local(parameter: Tensor) -> Tensor:
    """This rank's part of a divided parameter; its gradient is divided alike."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _columns(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, local(module.weight), None if module.bias is None else local(module.bias))


STYLES: dict[Style, type[_RegionStyle]] = {
    Style.COLUMNS: Columns,
    Style.ROWS: Rows,
    Style.VOCABULARY_ROWS: VocabularyRows,
    Style.OWN_POSITIONS: OwnPositions,
    Style.ENTER_BEFORE: EnterBefore,
    Style.ENTER_AFTER: EnterAfter,
    Style.AROUND: Around,
    Style.EXPERTS: DividedExperts,
    Style.OWN_ROWS: OwnRows,
}
