"""Optimizers by Music-Source-Separation-Training's names. They decay only matrices or, as there, all parameters.

    make_optimizer(model, "prodigy", lr=1.0, weight_decay=0.01, arguments={"d_coef": 0.5})

Prodigy and Muon come from pytorch-optimizer, the extra `optimizers`, and 8-bit AdamW from bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hunterFormsBS.installation import how_to_install

TORCH: Final = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}
ELSEWHERE: Final = {"prodigy": ("pytorch_optimizer", "Prodigy"), "adamw8bit": ("bitsandbytes.optim", "AdamW8bit")}
NAMES: Final = (*TORCH, *ELSEWHERE, "muon")

OF_PRODIGYOPT: Final = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
"""Arguments of prodigyopt, which Music-Source-Separation-Training uses, and their names here."""

GAINS: Final = ("bias", "static_alpha", "temperature")
"""Last parts of names of parameters with two or three axes that are not matrices: the angles of PoPE, the gains of
residual streams, the temperatures of linear attention."""


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is decayed, unlike gains, biases and rotary frequencies."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in GAINS


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    as_msst: bool = False,
) -> Optimizer:
    """Make an optimizer of a model's trained parameters: a group of matrices, and one of everything else.

    Parameters
    ----------
    model : nn.Module
    name : str
        One of `NAMES`.
    lr : float
    weight_decay : float, default None
        Of matrices; everything else is not decayed. None: 0.
    arguments : mapping, default None
        Further arguments of the optimizer. For Muon: those of its two groups, `muon_group` and `adam_group`, which
        override `lr` and `weight_decay`.
    as_msst : bool
        One group of all parameters, all decayed, by the optimizer's default unless stated; for Muon all parameters with
        two or more axes are matrices.

    Raises
    ------
    ValueError
        If the optimizer or an argument is unknown.
    ImportError
        If it belongs to a package that is not installed.
    """
    trained = {each: parameter for each, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {
        each: parameter.ndim >= 2 if as_msst else is_matrix(each, parameter) for each, parameter in trained.items()
    }
    matrices = [parameter for each, parameter in trained.items() if decayed[each]]
    others = [parameter for each, parameter in trained.items() if not decayed[each]]
    given = dict(arguments or {})
    if name == "muon":
        return _muon(matrices, others, lr, weight_decay or 0.0, given)
    if name in TORCH:
        kind: Any = TORCH[name]
    elif name in ELSEWHERE:
        kind = _load(name, *ELSEWHERE[name])
    else:
        raise ValueError(f"training.optimizer={name!r} is unknown: choose one of {', '.join(NAMES)}")
    if name == "prodigy":
        given = {OF_PRODIGYOPT.get(each, each): value for each, value in given.items()}
    # Optimizers of pytorch-optimizer accept and ignore unknown arguments.
    known = [each for each, one in signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD]
    if unknown := [each for each in given if each not in known]:
        raise ValueError(f"optimizer has {unknown[0]!r:.80}, which {name} does not: choose from {', '.join(known[1:])}")
    if as_msst:
        stated = {} if weight_decay is None else {"weight_decay": weight_decay}
        optimizer: Optimizer = kind(list(trained.values()), lr=lr, **{**stated, **given})
        return optimizer
    decay = given.pop("weight_decay", weight_decay or 0.0)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = kind([group for group in groups if group["params"]], lr=lr, **given)
    return optimizer


def _muon(
    matrices: Sequence[Tensor], others: Sequence[Tensor], lr: float, weight_decay: float, given: Mapping[str, Any]
) -> Optimizer:
    if given.keys() - {"muon_group", "adam_group"}:
        raise ValueError(f"optimizer={dict(given)}: Muon takes its arguments in muon_group and adam_group")
    muon = {"lr": lr, "weight_decay": weight_decay, **given.get("muon_group", {})}
    adam = {"lr": lr, "weight_decay": 0.0, **given.get("adam_group", {})}
    groups = [{"params": matrices, "use_muon": True, **muon}, {"params": others, "use_muon": False, **adam}]
    optimizer: Optimizer = _load("muon", "pytorch_optimizer", "Muon")([group for group in groups if group["params"]])
    return optimizer


def _load(name: str, module: str, kind: str) -> Any:
    try:
        return getattr(import_module(module), kind)
    except ImportError as error:
        remedy = how_to_install("optimizers") if module == "pytorch_optimizer" else "python -m pip install bitsandbytes"
        raise ImportError(f"training.optimizer={name!r} needs a package: {remedy}") from error
