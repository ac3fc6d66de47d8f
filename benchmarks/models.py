"""The same model from several packages: equal sizes, equal weights, equal outputs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.installation import how_to_install

Layout = Literal["bs", "mel"]
Package = Literal["hunterFormsBS", "BS-RoFormer", "pymss-core"]

OURS: Package = "hunterFormsBS"
REFERENCE: Package = "BS-RoFormer"
PACKAGES: tuple[Package, ...] = get_args(Package)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

SAMPLE_RATE = 44100
_MODULES = {REFERENCE: "bs_roformer", "pymss-core": "pymss_core"}
LATER = {"zero_dc", "num_residual_streams", "add_value_residual"}
"""Arguments that older versions of BS-RoFormer lack: what they switch off is not in there."""

_CLASSES = {"bs": "BSRoformer", "mel": "MelBandRoformer"}


@dataclass(frozen=True)
class Setting:
    """A model's size, and what only hunterFormsBS is to do differently.

    Parameters
    ----------
    layout : {'bs', 'mel'}
        Bands side by side, or mel bands, which overlap.
    stems, dim, depth, heads, dim_head, hop
        As the constructors of the three packages mean them; every transformer has one layer, and audio is stereo.
    bands : int, optional
        How many; by default 62, of BS-RoFormer's widths, or 60 mel bands.
    extra : mapping
        Further constructor arguments of hunterFormsBS, such as `use_torch_checkpoint`.
    """

    layout: Layout = "bs"
    stems: int = 1
    dim: int = 192
    depth: int = 3
    heads: int = 8
    dim_head: int = 64
    hop: int = 441
    bands: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def with_extra(self, **extra: object) -> Setting:
        """Return the same setting with more constructor arguments of hunterFormsBS."""
        return replace(self, extra={**self.extra, **extra})

    def shared_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that the packages share."""
        arguments: dict[str, Any] = {
            "dim": self.dim,
            "depth": self.depth,
            "heads": self.heads,
            "dim_head": self.dim_head,
            "stereo": True,
            "num_stems": self.stems,
            "time_transformer_depth": 1,
            "freq_transformer_depth": 1,
            "stft_hop_length": self.hop,
            "attn_dropout": 0.0,
            "ff_dropout": 0.0,
            "zero_dc": False,
            # Upstream's mel loss takes no hop below a quarter of the window; with this one both definitions agree.
            "multi_stft_hop_size": 147 if self.layout == "bs" else 1024,
        }
        if self.layout == "mel":
            arguments |= {"num_bands": self.bands or 60, "sample_rate": SAMPLE_RATE}
        elif self.bands is not None:
            width, rest = divmod(1025, self.bands)
            arguments["freqs_per_bands"] = (width,) * (self.bands - 1) + (width + rest,)
        return arguments


TINY = Setting(dim=8, depth=2, heads=2, dim_head=4, bands=4)
"""Sizes for trying the benchmarks out: what is printed says nothing about speed."""


def installed(packages: Iterable[Package]) -> list[Package]:
    """Return those of `packages` that can be imported."""
    return [p for p in packages if p == OURS or importlib.util.find_spec(_MODULES[p]) is not None]


def require(packages: Iterable[Package]) -> None:
    """Raise ImportError, naming what to install, unless all of `packages` can be imported."""
    packages = list(packages)
    if missing := sorted(set(packages) - set(installed(packages))):
        raise ImportError(
            f"The benchmark compares with {', '.join(missing)}, not installed here. Install: "
            f"{how_to_install('bench')}, or name the packages to compare with --packages."
        )


def build(package: Package, setting: Setting) -> nn.Module:
    """Build one package's model, with random weights, in eval mode."""
    arguments = setting.shared_arguments()
    if package == OURS:
        return BandSplitRotator(arguments.pop("dim"), **{**arguments, **setting.extra}).eval()
    require([package])
    if package == REFERENCE:
        arguments["num_residual_streams"] = 1
        if setting.layout == "mel":
            arguments |= {"linear_transformer_depth": 0, "add_value_residual": False}
        path = "bs_roformer"
    else:
        path = "pymss_core.modules.bs_roformer" + (".bs_roformer" if setting.layout == "bs" else ".mel_band_roformer")
        arguments["mask_estimator_depth"] = 2  # One hidden layer: it counts the output layer too.
    with peers_quiet():
        kind = getattr(importlib.import_module(path), _CLASSES[setting.layout])
        known = inspect.signature(kind).parameters
        for name in LATER & arguments.keys() - known.keys():
            del arguments[name]
        model = cast(nn.Module, kind(**arguments))
    if package == REFERENCE and setting.layout == "bs":
        _remove_value_residuals(model)
    return model.eval()


@contextmanager
def peers_quiet() -> Iterator[None]:
    """Hide the warnings that other packages cause: theirs to mend, and the output is to be read."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


def _remove_value_residuals(model: nn.Module) -> None:
    """Take away what BS-RoFormer adds to the architecture of the published checkpoints, unasked, since 0.5."""
    for module in model.modules():
        if getattr(module, "to_value_residual_mix", None) is not None:
            module.register_module("to_value_residual_mix", None)


def plain_state_dict(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return a BS-RoFormer model's weights under the keys that the other two packages use; change no plain keys."""
    plain: dict[str, Tensor] = {}
    shifted = layout == "mel" and not any(key.startswith("layers.0.0.") for key in state_dict)
    for key, tensor in state_dict.items():
        parts = key.replace(".branch.", ".").split(".")
        if shifted and parts[0] == "layers":
            parts[2] = str(int(parts[2]) - 1)  # There the linear transformer keeps its number when it is absent.
        plain[".".join(parts)] = tensor
    return plain


def matched(packages: Iterable[Package], setting: Setting, *, seed: int = 0) -> dict[Package, nn.Module]:
    """Build the model of every package, all with the weights of BS-RoFormer's.

    Without BS-RoFormer among `packages` hunterFormsBS gives the weights.
    """
    packages = list(packages)
    torch.manual_seed(seed)
    models = {package: build(package, setting) for package in packages}
    source = models[REFERENCE if REFERENCE in models else OURS]
    weights = plain_state_dict(source.state_dict(), setting.layout)
    for package, model in models.items():
        if package != REFERENCE:
            model.load_state_dict(weights)
    return models


def noise(seconds: float, *, batch: int = 1, seed: int = 1) -> Tensor:
    """Return stereo noise, `(b, s, t)`: what the sound is makes no difference to the cost."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(batch, 2, round(seconds * SAMPLE_RATE), generator=generator)


def stems_of_noise(seconds: float, stems: int, *, batch: int = 1) -> Tensor:
    """Return stems for `noise` to be separated into, `(b, n, s, t)`."""
    return noise(seconds, batch=batch * stems, seed=2).reshape(batch, stems, 2, -1)


def inference(model: nn.Module, audio: Tensor) -> Callable[[], Tensor]:
    """Return a function that separates `audio`."""

    def run() -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, model(audio))

    return run


def training(model: nn.Module, audio: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return a function that does forward, loss and backward, without the optimiser's step.

    Parameters
    ----------
    model : nn.Module
        Put in training mode.
    audio, target : Tensor
        `(b, s, t)` and `(b, n, s, t)`. BS-RoFormer wants the target of a single stem without the stem axis.
    """
    model.train()
    if not isinstance(model, BandSplitRotator) and target.shape[1] == 1:
        target = target[:, 0]

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = cast(Tensor, model(audio, target))
        torch.autograd.backward(loss)
        return loss.detach()

    return run


def disagreement(outputs: Mapping[Package, Tensor]) -> float:
    """Return the largest difference from BS-RoFormer's output (else from the first one), relative to its peak."""
    first = outputs.get(REFERENCE, next(iter(outputs.values())))
    return max(float((other.reshape_as(first) - first).abs().max() / first.abs().max()) for other in outputs.values())
