"""Continuing runs of Music-Source-Separation-Training here, and runs of this package there.

    last = read_last("results/last_bs_roformer.ckpt", model)
    load_named_state(optimizer, model, last.optimizer)

That program saves optimizer states by parameter index, in order of registration, which is the same here; here indices
become names. Only PyTorch's optimizers have the same state in both programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.checkpoint.weightsFile import WeightsFile
from hunterFormsBS.training.optimizers import TORCH
from hunterFormsBS.training.optimizerState import with_names
from hunterFormsBS.training.sections import settings_from
from hunterFormsBS.training.states import newest_state, replace

CLASSES: Final = {kind.__name__: name for name, kind in TORCH.items()}


class Last(NamedTuple):
    """The position of a run of Music-Source-Separation-Training.

    Parameters
    ----------
    optimizer : mapping
        Its state by names; see `hunterFormsBS.training.optimizerState`.
    name : str
        Its name in `training.optimizer`.
    epochs : int
        Finished epochs.
    lr : float
        The learning rate that its schedule had reached.
    """

    optimizer: Mapping[str, Any]
    name: str
    epochs: int
    lr: float


def read_last(pathFilename: Path | str, model: nn.Module) -> Last:
    """Read what `last_*.ckpt` holds besides the weights.

    Parameters
    ----------
    pathFilename : path
    model : nn.Module
        With the file's weights, unchanged: its parameter names are used.

    Raises
    ------
    ValueError
        If the file has no optimizer state, or one that cannot be used here.
    """
    file = WeightsFile(pathFilename)
    content: Mapping[str, Any] = {}
    if isinstance(file.content, Mapping):
        content = cast("Mapping[str, Any]", file.content)
    if not {"optimizer_state_dict", "model_state_dict"} <= content.keys():
        raise ValueError(f"{pathFilename} holds no optimizer's state: leave out --load-optimizer, or take last_*.ckpt")
    kind = str(content.get("optimizer_name"))
    if kind not in CLASSES:
        raise ValueError(
            f"{pathFilename} holds the state of {kind:.80}, and only those of {', '.join(CLASSES)} are the same in "
            "both programs: leave out --load-optimizer"
        )
    state: Any = file.read(content["optimizer_state_dict"])
    parameters = dict(model.named_parameters())
    names = [name for name in content["model_state_dict"] if name in parameters]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(names) != len(numbers) or len(names) != len(parameters):
        raise ValueError(
            f"{pathFilename} holds the state of an optimizer of {len(numbers)} parameters, and the model has "
            f"{len(parameters)}: leave out --load-optimizer"
        )
    epoch = content.get("epoch")
    return Last(
        optimizer=with_names(state, names),
        name=CLASSES[kind],
        epochs=epoch + 1 if isinstance(epoch, int) else 0,
        lr=float(state["param_groups"][0]["lr"]),
    )


def write_last(
    pathFilename: Path,
    model: BandSplitRotator,
    optimizer: Mapping[str, Any],
    *,
    name: str,
    epochs: int,
    best: float,
    configuration: Mapping[str, Any],
) -> None:
    """Write a checkpoint for `--start_check_point … --load_optimizer --load_epoch` there, and its configuration.

    Parameters
    ----------
    pathFilename : Path
        The configuration has the same path with the suffix `.yaml`.
    model : BandSplitRotator
    optimizer : mapping
        Its state by names. There, all parameters are one group, with the decay of matrices here.
    name : str
        Its name in `training.optimizer`.
    epochs : int
        Finished epochs.
    best : float
    configuration : mapping
        All sections but `model`.

    Raises
    ------
    ValueError
        If the optimizer has another state there.
    """
    if name not in TORCH:
        raise ValueError(
            f"training.optimizer={name!r} has another state there: take last.ckpt, the weights alone; only "
            f"{', '.join(TORCH)} are the same in both programs"
        )
    numbers = {parameter: number for number, (parameter, _) in enumerate(model.named_parameters())}
    first = next(iter(optimizer["param_groups"]))
    groups = [{**first, "params": list(numbers.values())}]
    state = {numbers[parameter]: values for parameter, values in optimizer["state"].items()}
    # The pair of files that Music-Source-Separation-Training takes, of which the first is then replaced.
    save_checkpoint(pathFilename, model, configuration=configuration, layout="msst")
    unfinished = pathFilename.with_name(f"{pathFilename.name}.unfinished")
    torch.save(
        {
            "epoch": epochs - 1,
            "optimizer_name": TORCH[name].__name__,
            "optimizer_state_dict": {"state": state, "param_groups": groups},
            "best_metric": best,
            "all_metrics": {},
            "all_losses": {},
            "model_state_dict": model.state_dict(),
        },
        unfinished,
    )
    replace(unfinished, pathFilename)


def convert_run(folder: Path, output: Path) -> tuple[int, int]:
    """Convert the last state of a run for Music-Source-Separation-Training.

    Its options there are `--start_check_point OUTPUT --config_path OUTPUT.yaml --load_optimizer --load_epoch`.

    Parameters
    ----------
    folder : Path
        Of the run.
    output : Path
        The checkpoint to write. Its configuration has the same name, with the suffix `.yaml`.

    Returns
    -------
    updates, epochs : int
        Finished updates, and the whole epochs among them.

    Raises
    ------
    ValueError
        If the folder has no state, or one that cannot be used there.
    """
    path = newest_state(folder)
    if path is None:
        raise ValueError(f"{folder / 'resume'} has no state: choose the folder of another run")
    last = folder / "last.ckpt"
    if not last.is_file():
        raise ValueError(f"{last} is not there: a run with adapters goes on in this program only")
    configuration: Mapping[str, Any] = torch.load(last, weights_only=True)["configuration"]
    settings = settings_from(configuration)
    state: Mapping[str, Any] = torch.load(path, weights_only=True)
    model = from_checkpoint(last)
    model.load_state_dict(state["model"])
    progress: Mapping[str, Any] = state["progress"]
    updates: int = progress["updates"]
    epochs = settings.epochs_in(updates)
    write_last(
        output,
        model,
        state["optimizer"],
        name=settings.optimizer,
        epochs=epochs,
        best=progress["best"],
        configuration={name: section for name, section in configuration.items() if name != "model"},
    )
    return updates, epochs
