"""Low-rank adapters (LoRA) of peft and of loralib, merged into the weights of a model.

Neither package is needed, and nothing that a file names is imported, called or fetched.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685. Kalajdzievski, A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv 2312.03732. Liu et al., DoRA: Weight-Decomposed
Low-Rank Adaptation, 2024, arXiv 2402.09353.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.configurationFile import PathFilename, parse_mapping, read_text
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.heads import HEAD, model_with_heads
from hunterFormsBS.checkpoint.kinds import kind_of_weights, refuse_unless_file
from hunterFormsBS.checkpoint.lora import LoraConfiguration, LoralibSection
from hunterFormsBS.checkpoint.weightsFile import WeightsFile, unwrap
from hunterFormsBS.operations.norm import vector_norm
from hunterFormsBS.printable import list_some, printable

__all__ = ["Adapters", "read_adapters", "without_adapters"]

CONFIGURATION: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_COPY: Final = re.compile(r"\.(?:original_module|modules_to_save\.[^.]+)(?=\.)")
"""The part of a name that marks a copy of a bias, which peft saves in addition to a fully trained module."""

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Adapters(ABC):
    """Adapters that are read but not merged.

    Parameters
    ----------
    path : Path
        Their file or folder, for messages.
    weights : mapping
    heads : mapping, default {}
        For each stem of the adapted model, the checkpoint's head that its head started from; None for a new head, whose
        weights are saved with the adapters. Empty if the model had the checkpoint's heads.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, Tensor], heads: Mapping[str, int | None] = MappingProxyType({})
    ) -> None:
        self.path = path
        self.weights = weights
        self.heads = heads

    def configuration_of(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checkpoint's configuration with the stems of the adapters, and without the section `lora`."""
        content = without_adapters(configuration)
        if self.heads:
            training: Mapping[str, Any] = content.get("training") or {}
            content["training"] = {**training, "instruments": list(self.heads), "target_instrument": None}
            model: Mapping[str, Any] = content.get("model") or {}
            content["model"] = {**model, "num_stems": len(self.heads)}
        return content

    def merge_into(self, model: BandSplitRotator) -> BandSplitRotator:
        """Add the adapters to the weights of the model that they were trained on.

        Parameters
        ----------
        model : BandSplitRotator
            Its weights are changed, in their own dtype; none are if the adapters are refused. If the adapters have
            their own heads, a new model is returned and this one is unchanged.

        Returns
        -------
        model : BandSplitRotator
            The same model, or a new one with the stems of `heads`, in eval mode.

        Raises
        ------
        CheckpointError
            If the adapters do not fit the model, or the merged weights are not finite.
        ImportError
            If their regular expressions need a package that is not installed.
        """
        try:
            if self.heads:
                model = self._with_heads(model)
            merging = _Merging(model, self.weights)
            with torch.no_grad():
                self._merge(merging)
                merging.finish()
        except CheckpointError as error:
            raise CheckpointError(
                f"the adapters in {printable(self.path)} do not fit the model: {error}; pass the checkpoint that they "
                "were trained on"
            ) from error
        return model.eval()

    def _with_heads(self, model: BandSplitRotator) -> BandSplitRotator:
        for stem, number in self.heads.items():
            if number is not None and number >= model.num_stems:
                raise CheckpointError(
                    f"{printable(stem, 60)} started from head {number}, and it has the heads 0 to {model.num_stems - 1}"
                )
        return model_with_heads(model, list(self.heads.values()))[0]

    @abstractmethod
    def _merge(self, merging: _Merging) -> None:
        """Compute the merged weights."""


def without_adapters(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of the checkpoint alone: without the section `lora`."""
    return {name: section for name, section in configuration.items() if name != "lora"}


class _PeftAdapters(Adapters):
    """Adapters from a folder that peft saved."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor], lora: LoraConfiguration) -> None:
        plain = {key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()}
        copies = {key for key in plain if lora.bias == "all" and _COPY.search(key) and _COPY.sub("", key) in plain}
        weights_of_all = {key: tensor for key, tensor in plain.items() if key not in copies}
        super().__init__(path, weights_of_all, lora.stem_heads or {})
        self.lora = lora

    def _merge(self, merging: _Merging) -> None:
        layers = self.lora.scales(merging.model)
        whole = tuple(f"{name}." for name in self.lora.whole(merging.model))
        for number, (stem, head) in enumerate(self.heads.items()):
            if head is None and f"{HEAD}{number}." not in whole:
                raise CheckpointError(f"the head of {printable(stem, 60)} is new, and modules_to_save lacks it")
        for key, tensor in merging.state.items():
            if whole and key.startswith(whole):
                merging.put(key, merging.take(key, tensor.shape))
            elif key.endswith(".bias") and self.lora.bias != "none":
                self._merge_bias(merging, key, key.removesuffix(".bias") in layers)
        for name, (rank, scale) in layers.items():
            self._merge_layer(merging, name, rank, scale)

    def _merge_bias(self, merging: _Merging, key: str, has_adapters: bool) -> None:
        if has_adapters or self.lora.bias == "all":
            stored = f"{key.removesuffix('bias')}base_layer.bias" if has_adapters else key
            merging.put(key, merging.take(stored, merging.state[key].shape), of_all=True)

    def _merge_layer(self, merging: _Merging, name: str, rank: int, scale: float) -> None:
        weight = merging.weight_of(name)
        width, ones = weight.shape[0], (1,) * (weight.ndim - 2)  # a kernel of this rank, for convolutions
        down = merging.take(f"{name}.lora_A.weight", (rank, *weight.shape[1:]))
        up = merging.take(f"{name}.lora_B.weight", (width, rank, *ones))
        product = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        merged = weight + scale * product
        if self.lora.use_dora:
            magnitude = merging.take(f"{name}.lora_magnitude_vector", (1, width, *ones) if ones else (width,))
            norm = vector_norm(merged.flatten(1), dim=1)
            merged = merged * (magnitude.flatten() / norm).view(-1, 1, *ones)
        merging.put(f"{name}.weight", merged)
        if self.lora.lora_bias:
            added = scale * merging.take(f"{name}.lora_B.bias", (width,))
            merging.put(f"{name}.bias", merging.now(f"{name}.bias") + added)


class _LoralibAdapters(Adapters):
    """Adapters of loralib's layers `Linear` and `MergedLinear`, as Music-Source-Separation-Training saves them."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor], section: LoralibSection) -> None:
        super().__init__(path, weights)
        self.section = section

    def _merge(self, merging: _Merging) -> None:
        for name in [key.removesuffix(".lora_A") for key in self.weights if key.endswith(".lora_A")]:
            weight = merging.weight_of(name)
            width = weight.shape[0]
            down, up = merging.take(f"{name}.lora_A"), merging.take(f"{name}.lora_B")
            rank = up.shape[-1]
            # If all parts have one rank, whatever the section says, the layer is `Linear`, or `MergedLinear` of one
            # part.
            plain = (down.shape, up.shape) == ((rank, weight.shape[1]), (width, rank))
            enabled = [True] if plain else self.section.enable_lora or [True]
            part = width // len(enabled)
            expected = (sum(enabled) * rank, *weight.shape[1:]), (sum(enabled) * part, rank)
            if (
                rank != (self.section.r or rank)
                or part * len(enabled) != width
                or not rank
                or (down.shape, up.shape) != expected
            ):
                raise CheckpointError(
                    f"{name} has the weight {tuple(weight.shape)}, its adapters are {tuple(down.shape)} and "
                    f"{tuple(up.shape)}, and the section lora states r: {self.section.r}, enable_lora: "
                    f"{self.section.enable_lora}"
                )
            pairs = iter(zip(_split(up, part), _split(down, rank), strict=True))
            rest = weight.new_zeros(part, weight.shape[1])
            added = torch.cat([torch.mm(*next(pairs)) if each else rest for each in enabled])
            merging.put(f"{name}.weight", weight + self.section.lora_alpha / rank * added)


def _split(tensor: Tensor, size: int) -> Iterable[Tensor]:
    return torch.split(tensor, size)


class _Merging:
    """Weights of adapters, each to be used once, and the new values of the model's parameters."""

    def __init__(self, model: BandSplitRotator, weights: Mapping[str, Tensor]) -> None:
        self.model = model
        self.state: dict[str, Tensor] = model.state_dict()
        self._modules = dict(cast("Iterable[tuple[str, nn.Module]]", model.named_modules()))
        self._weights = dict(weights)
        self._new: dict[str, Tensor] = {}
        self._of_all: set[str] = set()

    def now(self, key: str) -> Tensor:
        """Return a weight of the model, as changed so far, in float32 or better."""
        if key not in self.state:
            raise CheckpointError(f"the model has no {key}")
        return _in_full(self._new.get(key, self.state[key]))

    def weight_of(self, name: str) -> Tensor:
        """Return the weight of a layer that can have adapters."""
        layer = self._modules.get(name)
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            what = "not in the model" if layer is None else f"of the class {type(layer).__name__}"
            raise CheckpointError(f"{printable(name, 120)} is {what}, and adapters are for Linear, Conv1d and Conv2d")
        if not isinstance(layer, nn.Linear) and layer.groups > 1:
            raise CheckpointError(f"{name} is a convolution in {layer.groups} groups, which has no adapters to merge")
        return self.now(f"{name}.weight")

    def take(self, key: str, shape: Collection[int] | None = None) -> Tensor:
        """Take a weight of the adapters, checking its shape if known: on the model's device, in float32 or better."""
        tensor = self._weights.pop(key, None)
        if tensor is None:
            raise CheckpointError(f"{printable(key, 160)} is missing")
        if shape is not None and tensor.shape != tuple(shape):
            raise CheckpointError(
                f"{printable(key, 160)} has the shape {tuple(tensor.shape)}, and it must be {tuple(shape)}"
            )
        return _in_full(tensor.to(next(self.model.parameters()).device))

    def put(self, key: str, value: Tensor, *, of_all: bool = False) -> None:
        """Set a new value; with `of_all`, for all names of a shared parameter."""
        if key not in self.state:
            raise CheckpointError(f"the model has no {key}")
        old = self.state[key]
        if value.is_floating_point() != old.is_floating_point():
            raise CheckpointError(f"{key} is {value.dtype} in the adapters, and {old.dtype} in the model")
        self._new[key] = value.to(old.dtype)
        if not self._new[key].isfinite().all():
            raise CheckpointError(f"{key} would not be finite in {old.dtype}")
        if of_all:
            self._of_all.add(key)

    def finish(self) -> None:
        """Change the model.

        Raises
        ------
        CheckpointError
            If a weight of the adapters was not used, or a shared parameter would need several values.
        """
        if self._weights:
            raise CheckpointError(f"{list_some([*self._weights])} belong to none of its layers that have adapters")
        for key in self._shared():
            raise CheckpointError(f"{key} belongs to several layers, and the adapters change it for some of them")
        for key, value in self._new.items():
            self.state[key].copy_(value)

    def _shared(self) -> list[str]:
        """Return a name of each parameter with several names whose new values differ."""
        names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names[id(parameter)].append(name)
        differing: list[str] = []
        for each in names.values():
            changed = [name for name in each if name in self._new]
            kept = [name for name in each if name not in self._new] if not self._of_all.issuperset(changed) else []
            values = [self._new.get(name, self.state[name]) for name in (*changed, *kept)]
            if changed and not all(torch.equal(values[0], value) for value in values[1:]):
                differing.append(changed[0])
        return differing


def read_adapters(pathFilename: PathFilename, configuration: Mapping[str, Any] | None = None) -> Adapters:
    """Read low-rank adapters.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        The folder that `save_pretrained` of peft wrote, or the file of loralib's adapters that
        Music-Source-Separation-Training wrote.
    configuration : mapping, default None
        The configuration of the training, for adapters of loralib: its section `lora` states their scale.

    Raises
    ------
    CheckpointError
        If there are no adapters, or they are damaged or not supported.
    OSError
        If a file cannot be opened.
    """
    path = Path(pathFilename)
    if path.is_dir():
        return _read_folder(path)
    refuse_unless_file(path, "a folder or a file of adapters")
    weights = _read_weights(path)
    if any(".lora_A." in key for key in weights):
        raise CheckpointError(f"{printable(path)} is a part of adapters of peft: pass its folder, with {CONFIGURATION}")
    if not any(key.endswith(".lora_A") for key in weights):
        raise CheckpointError(f"{printable(path)} holds no adapters: its keys are {list_some([*weights])}")
    section = LoralibSection.of((configuration or {}).get("lora"), f"the adapters in {printable(path)}")
    return _LoralibAdapters(path, weights, section)


def _read_folder(folder: Path) -> Adapters:
    file, weights = folder / CONFIGURATION, folder / WEIGHTS
    if not file.exists():
        raise CheckpointError(f"{printable(folder)} holds no adapters: choose a folder with {CONFIGURATION}")
    what = f"the configuration {printable(file)}"
    lora = LoraConfiguration.of(parse_mapping(read_text(file), what), what)
    if not weights.exists():
        raise CheckpointError(
            f"{printable(folder)} has a {CONFIGURATION} and no {WEIGHTS}: copy or download it again. A .bin is "
            "not read: save the adapters anew with safe_serialization=True"
        )
    if kind_of_weights(weights) != "safetensors":
        raise CheckpointError(f"{printable(weights)} is not a file of safetensors: save the adapters anew")
    return _PeftAdapters(folder, _read_weights(weights), lora)


def _read_weights(path: Path) -> dict[str, Tensor]:
    file = WeightsFile(path)
    chosen, remarks = unwrap(file.content, path)
    for remark in remarks:
        warnings.warn(remark, stacklevel=4)
    weights = file.read_state_dict(chosen, "cpu")
    for key, tensor in weights.items():
        if tensor.dtype not in _FLOATS and not (tensor.ndim == 0 and tensor.dtype == torch.int64):
            raise CheckpointError(f"{printable(path)} is refused: {printable(key, 160)} in it is {tensor.dtype}")
    return weights


def _in_full(tensor: Tensor) -> Tensor:
    """Return numbers of half precision in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
