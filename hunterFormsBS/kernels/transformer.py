"""A transformer that processes sequences in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.attention import Positions
from hunterFormsBS.kernels.linear import pack
from hunterFormsBS.kernels.prepared import Prepared
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Served, Where, kernel

TOKENS_PER_BLOCK = 2048
"""Tokens per block on a CPU, so that activations between layers stay in the cache."""


class Transformer(Served, Protocol):
    """The part of a transformer that its kernel uses."""

    num_residual_streams: int
    use_torch_checkpoint: bool
    run_layers: Callable[..., tuple[Tensor, Tensor | None]]

    @property
    def positions(self) -> Positions | None:
        """The position embedding that all layers share."""
        ...

    def modules(self) -> Iterator[Any]:
        """Iterate over all modules inside."""
        ...


@kernel(Where.EAGER)
def by_blocks(
    transformer: Transformer, x: Tensor, first_values: Tensor | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """Run blocks of sequences one after another; pack weights and make the table of positions once for all.

    Sequences are independent. Devices other than a CPU get one block, because launches cost more than memory traffic
    there.
    """
    if x.numel() == 0 or not transformer.is_unmodified_inside():
        return None
    streams = transformer.num_residual_streams
    rows = x.shape[0] * x.shape[1]
    if x.device.type == "cpu":
        sequences = max(1, TOKENS_PER_BLOCK // (x.shape[1] * streams)) * streams
        rows = min(sequences, x.shape[0]) * x.shape[1]
        # Made contiguous one at a time; otherwise each linear map of the first layer would copy the transposed view.
        blocks: Iterable[Tensor] = map(Tensor.contiguous, torch.split(x, sequences))
    else:
        sequences, blocks = len(x), (x,)

    linears = [module for module in transformer.modules() if type(module) is nn.Linear]
    packed = pack(linears, x, rows // streams)
    positions = transformer.positions
    prepared = Prepared(None if positions is None else positions.table(x.shape[1]), packed)
    run = checkpointed(transformer.run_layers) if transformer.use_torch_checkpoint else transformer.run_layers
    firsts = repeat(None) if first_values is None else torch.split(first_values, sequences // streams)
    outs: list[Tensor] = []
    values: list[Tensor] = []
    for block, first in zip(blocks, firsts, strict=False):
        out, value = run(block, first, prepared=prepared)
        outs.append(out)
        if value is not None:
            # A view would keep queries and keys alive too; if gradients are recorded they live anyway.
            values.append(value if value.requires_grad else value.contiguous())
    # Otherwise activation checkpointing would keep the packed weights until the backward pass.
    packed.clear()
    return _joined(outs), _joined(values) if values else None


def _joined(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks) if len(blocks) > 1 else blocks[0]
