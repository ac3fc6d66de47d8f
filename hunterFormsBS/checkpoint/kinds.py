"""The format of a file by its contents, and checks that a path is a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.limits import LARGEST_HEADER
from hunterFormsBS.printable import printable

Kind: TypeAlias = Literal["torch", "safetensors", "index"]

MAGIC: Final = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number at the start of the older format of `torch.save`, as a pickle holds it."""

_FOLDER_REMEDY: Final = "it is a folder: pass a file in it, such as its .ckpt, .pth or .safetensors"
_NOT_ITSELF: Final = (
    (rb"\s*version https://git-lfs\.github\.com/", "it is a pointer of Git LFS, not the file itself: run git lfs pull"),
    (
        rb"(\xef\xbb\xbf)?\s*(<!doctype|<html|<\?xml|<head)",
        "it is a web page, not the file itself: use the download link",
    ),
    (
        rb"(entry|repository|model|404:?) not found|not found$|invalid (username|credentials|token)|access (to|denied)"
        rb'|unauthorized|forbidden|too many requests|\{"(error|message|detail)"',
        "it is a server's message instead of the file: open its page, accept its terms if it has any, and download it",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", "it is compressed: decompress it first"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!", "it is an archive: extract the checkpoint first"),
    (rb"(?s).{257}ustar", "it is a tar archive: extract the checkpoint first, or save it anew with torch.save"),
)
"""First bytes of files that replace or contain a checkpoint, as regular expressions, with remedies."""

_NAMED: Final = (
    *_NOT_ITSELF,
    (rb"GGUF|GGML", "it is a file of GGML, which holds quantised weights"),
    (rb"\x89HDF\r\n", "it is a file of HDF5, not of PyTorch"),
    (rb"RIFF|fLaC|OggS|ID3", "it is audio"),
    (rb"\x93NUMPY", "it is an array of NumPy"),
    (rb"(?s)\x08.{0,8}\x12|\x08[\x01-\x20]", "it looks like a model in ONNX, whose weights are not read"),
)
"""First bytes of other formats, as regular expressions, with names."""


def kind_of_weights(path: Path) -> Kind:
    """Return the format of a weights file by its contents.

    Raises
    ------
    CheckpointError
        If it is something else; the message names it.
    OSError
        If it cannot be opened.
    """
    refuse_unless_file(path, "a checkpoint")
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise CheckpointError(f"{printable(path)} is empty: copy or download it again")
    size = path.stat().st_size
    header = int.from_bytes(start[:8], "little")
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start[:1] in (b"\x80", b"L") and (MAGIC in start[:40] or start.startswith(b"L119547037146038801333356L\n")):
        return "torch"
    if start[8:9] == b"{" and header < 2**40:  # eight characters of text would be a larger number
        if header > LARGEST_HEADER or 8 + header > size:
            raise CheckpointError(
                f"{printable(path)} cannot be read, it is damaged or incomplete: its header would have {header:,} of "
                f"{size:,} bytes, and at most {LARGEST_HEADER:,} are read"
            )
        return "safetensors"
    if path.name.endswith(".index.json"):
        return "index"
    raise CheckpointError(f"{printable(path)} is not a weights file: {_what_is(start, path)}")


def refuse_unless_file(path: Path, what: str) -> None:
    """Refuse folders, devices, addresses and names on a hub, with a message for each."""
    text = str(path)
    if "\0" in text:
        raise CheckpointError(f"{printable(path)} is not {what}: a path holds no zero byte")
    if path.is_dir():
        raise IsADirectoryError(f"{printable(path)} is not {what}: {_FOLDER_REMEDY}")
    if path.exists():
        if not path.is_file():
            raise CheckpointError(f"{printable(path)} is not {what}: it is a device or a pipe, not a file")
        return
    if re.match(r"(https?|ftp|s3|gs|hf):/", text):
        raise FileNotFoundError(f"{printable(path)} is an address: download the file, and pass its path")
    if not path.suffix and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise FileNotFoundError(
            f"{printable(path)} does not exist. If it is the name of a repository on a hub, download the file, and "
            "pass its path"
        )


def refuse_weights(path: Path, start: bytes) -> None:
    """Refuse a configuration that is a checkpoint or another known format."""
    if start.startswith((b"PK\x03\x04", b"\x80\x02")) or (
        start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER and 0 in start[:8]
    ):
        raise CheckpointError(
            f"{printable(path)} is not a configuration, but looks like a checkpoint: pass it as the first argument, "
            "and the .yaml or .json that came with it as configuration"
        )
    for pattern, what in _NOT_ITSELF:
        if re.match(pattern, start, re.IGNORECASE):
            raise CheckpointError(f"{printable(path)} is not a configuration: {what}")


def _what_is(start: bytes, path: Path) -> str:
    for pattern, what in _NAMED:
        if re.match(pattern, start, re.IGNORECASE):
            return what
    if start[:1] == b"\x80":
        return (
            "it is a pickle that torch.save did not write, or a damaged one, and is refused, because Python would have "
            "to unpickle it, which could run code"
        )
    if path.suffix.lower() in (".yaml", ".yml", ".json") or re.match(rb"[\w\s#'\"{-][^\x00-\x08\x0e-\x1f]*$", start):
        return "it is text, and looks like a configuration: pass it as configuration" + _json_hint(start)
    return "neither torch.save nor safetensors wrote it. If it is a configuration, pass it as configuration"


def _json_hint(start: bytes) -> str:
    try:
        parsed: object = json.loads(start) if b"weight_map" in start else None
    except (ValueError, RecursionError):
        return ""
    return ". If it is the index of several files, its name must end in .index.json" if parsed else ""
