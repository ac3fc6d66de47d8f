"""Checkpoints by name: a local file, a name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.

A checkpoint of the catalogue is known by its name there, its file name, and its names in other programs. Fetching is
above the loader, which takes a file and the configuration that was found with it.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import elsewhere, facts, hub
from hunterFormsBS.checkpoint.configuration import Configuration
from hunterFormsBS.checkpoint.configurationFile import PathFilename, read_configuration
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.facts import Entry
from hunterFormsBS.checkpoint.kinds import refuse_unless_file
from hunterFormsBS.checkpoint.loading import choose_configuration, has_shapes_of, load
from hunterFormsBS.checkpoint.saving import save_checkpoint
from hunterFormsBS.checkpoint.weightsFile import WeightsFile
from hunterFormsBS.choices import MODEL_FILE, Upstream
from hunterFormsBS.printable import printable, say, short_repr

PREFIX: Final = "hub:"
SHORTEST_PART: Final = 3
"""Shorter names are too vague for suggestions."""
MOST_NEAR: Final = 3
"""Names of the catalogue that a message suggests."""


def recognise(pathFilename: PathFilename) -> Entry | None:
    """Return the checkpoint of the catalogue that a file is, or None; see `checkpoint/facts.py`."""
    path = Path(pathFilename)
    return facts.recognise_file(path, lambda entry: has_shapes_of(entry, path))


def from_checkpoint(
    pathFilename: PathFilename,
    configuration: Configuration | None = None,
    *,
    upstream: Upstream | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    stems: Sequence[int] | None = None,
    partial: bool = False,
    **overrides: Any,
) -> BandSplitRotator:
    """Load a model from a checkpoint of any known family.

    A `UserWarning` is issued for each argument of the configuration that tensor shapes contradict (the shapes win), and
    one that lists the audible arguments that nothing determined.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        A file (see `read_state_dict`), a name of `hunterFormsBS.catalogue`, or `hub:OWNER/REPOSITORY/FILE`; the last
        two are fetched.
    configuration : str | PathLike[str] | Mapping[str, Any] | None, default None
        As in `from_configuration`. `None`: the one that `save_checkpoint` put into the file, else the one published
        with a fetched file, else that of the catalogue, which also recognises local files.
    upstream : Upstream | None, default None
        The project whose convention and defaults the configuration follows. `None`: recognised from the keys, `'msst'`
        if they fit several; `'hunterFormsBS'` for a configuration within the file. `'msst_experimental'` is for
        checkpoints of MSST's experimental classes, which keys do not show: see `residual_in_first_group_only` of
        `BandSplitRotator`.
    device : torch.device | str, default "cpu"
        Where the model goes.
    dtype : torch.dtype, default torch.float32
        Of the model's parameters, whatever the file has.
    stems : Sequence[int] | None, default None
        Load only these heads, in this order. `None`: all.
    partial : bool, default False
        For fine-tuning: let `overrides` change shapes, for example by `num_stems` or `depth`. Tensors that fit are
        taken, the others are new. A `UserWarning` counts the tensors taken, new and left out for each part of the
        model.
    **overrides : Any
        Arguments of `BandSplitRotator`, in its convention; they override the configuration.

    Returns
    -------
    model : BandSplitRotator
        In eval mode, loaded strictly. `match_input_audio_length` is true unless stated, so that estimates are as long
        as the mixture; upstream rounds down to a multiple of the hop length.

    Raises
    ------
    CheckpointError
        If the file is invalid, if keys are unknown or missing, or if an argument is unknown or does not fit the
        weights.
    OSError
        If a file cannot be opened.
    """
    path, beside = find(pathFilename)
    return load(
        path,
        configuration,
        beside=beside,
        upstream=upstream,
        device=device,
        dtype=dtype,
        stems=stems,
        partial=partial,
        **overrides,
    )


def is_remote(name: object) -> bool:
    """Tell whether this is the name of a checkpoint to fetch, not a local file."""
    return isinstance(name, str) and (
        name.startswith(PREFIX) or (facts.find_entry(name) is not None and not Path(name).exists())
    )


def find(name: PathFilename) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the file of a checkpoint, fetched if this is a name, and, if fetched, its configuration.

    Raises
    ------
    CheckpointError, ImportError
        See `fetch`.
    FileNotFoundError
        If there is no such file; the message suggests a name of the catalogue.
    IsADirectoryError
        If it is a folder. Devices, pipes and sockets raise `CheckpointError`, before anything is read.
    """
    text = Path(name).as_posix()
    if is_remote(text):
        return fetch(text)
    path = Path(name)
    if not path.exists():
        names, part = facts.names(), text.lower()
        near = [known for known in names if len(part) > SHORTEST_PART and part in known.lower()][:MOST_NEAR]
        near = near or difflib.get_close_matches(text, names, n=1, cutoff=0.8)
        hint = f"; the catalogue has {', '.join(near)}" if near else ""
        raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}{hint}", str(name))
    refuse_unless_file(path, "a checkpoint")
    return path, None


def find_configuration(
    name: PathFilename, configuration: Configuration | None
) -> tuple[Path, Configuration | None, Mapping[str, Any]]:
    """Return a checkpoint's file, what to pass to `from_checkpoint` as its configuration, and the configuration itself.

    The configuration is the one that `from_checkpoint` uses: the given one, or the one in the file, or the one found
    with it, or that of the catalogue. What to pass is None if `from_checkpoint` finds the configuration itself.

    Raises
    ------
    CheckpointError, ImportError, OSError
        If a file cannot be fetched or read.
    """
    path, beside = find(name)
    with path.open("rb"):
        pass
    within = WeightsFile(path).configuration if configuration is None else None
    whole = choose_configuration(path, configuration, within, beside)
    return path, beside if configuration is None and within is None else configuration, whole


def fetch(name: str) -> tuple[Path, Mapping[str, Any] | None]:
    """Download a checkpoint, or find it in the cache of `huggingface_hub`.

    That package's settings apply: its cache, its token for the Hub, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, and its progress
    bar. Before a checkpoint of the catalogue is downloaded, a line on standard error names the maker of the weights and
    the page with their terms.

    Parameters
    ----------
    name : str
        A name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.

    Returns
    -------
    path : Path
        The file. Its SHA-256 equals that of the catalogue, if known.
    configuration : Mapping[str, Any] or None
        That of the catalogue, or the YAML file with the checkpoint's name, or the only one in the repository.

    Raises
    ------
    CheckpointError
        If the name is unknown, the file cannot be downloaded, or it differs from the catalogue's.
    ImportError
        If huggingface_hub is not installed.
    """
    entry = facts.find_entry(name) or _entry_at(name)

    def tell_whose() -> None:
        if entry.page:
            say(entry.whose, sys.stderr)

    if entry.url:
        path = elsewhere.download(entry.url, entry.page, entry.sha256, entry.size, tell_whose)
        return path, entry.configuration
    if not entry.repository:
        path, configuration = elsewhere.files_by_hand(entry)
        if entry.parts or not (path.is_file() and configuration.is_file()):
            raise CheckpointError(f"{printable(name)} cannot be fetched by its name: {elsewhere.by_hand(entry)}")
        return path, read_configuration(configuration)
    path = hub.download(entry.repository, entry.file, entry.revision, entry.sha256, tell_whose)
    return path, entry.configuration or _configuration_beside(entry, path)


def publish(
    model: BandSplitRotator,
    repository: str,
    *,
    configuration: Mapping[str, Any] | None = None,
    private: bool = False,
) -> str:
    """Upload a model to the Hugging Face Hub, for `BandSplitRotator.from_pretrained`.

    Parameters
    ----------
    model : BandSplitRotator
        It becomes one safetensors file that contains its arguments.
    repository : str
        `OWNER/REPOSITORY`, created if it does not exist.
    configuration : Mapping[str, Any] | None, default None
        Further sections; see `hunterFormsBS.checkpoint.save_checkpoint`.
    private : bool, default False
        Whether a new repository is private.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    CheckpointError
        If the upload is refused or there is no connection.
    ImportError
        If huggingface_hub is not installed.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        save_checkpoint(path, model, configuration=configuration)
        return hub.upload(repository, path, private=private)


def _entry_at(name: str) -> Entry:
    """Return the entry of `hub:OWNER/REPOSITORY/FILE`, optionally with `@REVISION`, which may be in the catalogue."""
    location, _, revision = name.removeprefix(PREFIX).partition("@")
    owner, _, rest = location.partition("/")
    repository, _, file = rest.partition("/")
    if not name.startswith(PREFIX) or not (owner and repository and file):
        raise CheckpointError(
            f"{short_repr(name)} is neither a name of the catalogue nor hub:OWNER/REPOSITORY/FILE: see "
            "hunterFormsBS.catalogue.entries()"
        )
    repository = f"{owner}/{repository}"
    for entry in facts.entries().values():
        if (entry.repository, entry.file) == (repository, file) and revision in ("", entry.revision):
            return entry
    return Entry(name=name, stems=(), configuration={}, repository=repository, file=file, revision=revision or "main")


def _configuration_beside(entry: Entry, path: Path) -> Mapping[str, Any] | None:
    """Return the configuration with the checkpoint's name, or the only one in the repository."""
    commit = hub.commit_of(path, entry.file)
    try:
        names = hub.names_of(entry.repository, commit)
    except CheckpointError as error:
        warnings.warn(f"no configuration is looked for beside {printable(entry.name)}: {error}", stacklevel=5)
        return None
    texts = [name for name in names if name.lower().endswith((".yaml", ".yml"))]
    stem = str(Path(entry.file).with_suffix(""))
    own = [name for name in texts if str(Path(name).with_suffix("")) == stem] or (texts if len(texts) == 1 else [])
    return read_configuration(hub.download(entry.repository, own[0], commit)) if own else None
