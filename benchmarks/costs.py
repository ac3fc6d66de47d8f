"""What the checkpoints of the catalogue cost, computed from their configurations: `python -m benchmarks.costs`.

Nothing is measured. The model runs on PyTorch's meta device, where tensors have shapes and no values: operations are
those of matrix products, attention and convolutions, and memory is that of the weights and of the tensors that exist at
the same time, in float32, with an attention that stores no scores (as on a GPU) and without the kernels that save
memory.
`--write` puts the numbers into `hunterFormsBS/catalogue.json`, where the test that recomputes them expects them.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_configuration

CATALOGUE = Path(__file__).parents[1] / "hunterFormsBS" / "catalogue.json"


class Cost(NamedTuple):
    """What a model costs, in the fields of a catalogue's entry."""

    flop_per_second: int
    memory: int


class Efficient(TorchFunctionMode):
    """Have attention computed by the operator of a GPU that stores no scores."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return function(*args, **(kwargs or {}))


class Alive(TorchDispatchMode):
    """Count the bytes of the tensors that exist, and the most that did."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self.known:
                self.known.add(storage)
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return result

    def count(self, size: int) -> None:
        """Add what is new, or take away what is gone."""
        self.bytes += size
        self.most = max(self.most, self.bytes)


def cost(model: BandSplitRotator, samples: int, sample_rate: int) -> Cost:
    """Return what a model on the meta device costs, for a chunk of so many samples.

    Both transforms are left out, which are some hundred operations for each value of a spectrum.
    """
    arguments = model.configuration
    bins, frames = arguments["stft_n_fft"] // 2 + 1, samples // arguments["stft_hop_length"] + 1
    with torch.device("meta"), torch.no_grad(), Efficient():
        spectrum = torch.empty(1, 2 if arguments["stereo"] else 1, bins, frames, 2)
        with FlopCounterMode(display=False) as operations, Alive() as alive:
            model.mask_spectrum(spectrum)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    total = weights + spectrum.nbytes + alive.most
    # Three digits: more would be a promise.
    rounded = (float(f"{number:.2e}") for number in (operations.get_total_flops() * sample_rate / samples, total))
    return Cost(*map(int, rounded))


def cost_of(configuration: Mapping[str, Any]) -> Cost:
    """Return what a model costs for a chunk of its configuration."""
    with torch.device("meta"):
        model = from_configuration({"model": configuration["model"]}).eval()
    return cost(model, configuration["audio"]["chunk_size"], configuration["audio"]["sample_rate"])


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write the costs of all checkpoints."""
    # Imported here, because it reads the file that this may be about to mend.
    from hunterFormsBS.catalogue import entries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the numbers into the catalogue")
    write = parser.parse_args(argv).write
    computed: dict[str, Cost] = {}
    lines = CATALOGUE.read_text(encoding="utf-8").splitlines()
    for name, entry in entries().items():
        if not entry.configuration:
            continue
        key = json.dumps(entry.configuration, sort_keys=True)
        costs = computed[key] = computed.get(key) or cost_of(entry.configuration)
        print(f"{name}\t{costs.flop_per_second / 1e9:.0f} GFLOP/s\t{costs.memory / 1e9:.2f} GB", flush=True)
        (number,) = (number for number, line in enumerate(lines) if line.startswith(f'  "{name}": '))
        row = json.loads(lines[number].partition(": ")[2].rstrip(","))
        comma = "," if lines[number].endswith(",") else ""
        lines[number] = f'  "{name}": {json.dumps({**row, **costs._asdict()}, ensure_ascii=False)}{comma}'
    if write:
        CATALOGUE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
