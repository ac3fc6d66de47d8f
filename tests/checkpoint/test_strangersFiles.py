"""Files from strangers: each ends in a model or in one clear line, quickly, and none runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import unicodedata
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator, limits
from hunterFormsBS.__main__ import main
from hunterFormsBS.checkpoint import (
    CheckpointError,
    from_checkpoint,
    from_configuration,
    read_configuration,
    read_state_dict,
)
from hunterFormsBS.checkpoint.unpickling import Placeholder, unpickle
from tests.models import TINY

ONE = {"band_split.to_features.0.1.weight": torch.arange(6.0).reshape(2, 3)}
CONFIGURATION = {name: value for name, value in TINY.items() if not name.startswith("multi")}


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 20, "a file from a stranger takes long"


@pytest.fixture(scope="module")
def model() -> BandSplitRotator:
    return BandSplitRotator(**TINY).eval()


def saved(folder: Path, content: object, name: str = "model.ckpt", **keywords: Any) -> Path:
    torch.save(content, folder / name, **keywords)
    return folder / name


def refusal(action: Callable[[], object], *errors: type[Exception]) -> str:
    """Return the message with which something is refused, which must be one bounded line of printable text."""
    with pytest.raises(errors or (CheckpointError,)) as raised:
        action()
    message = str(raised.value)
    assert len(message) < 2500
    assert not [character for character in message if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")]
    return message


def loaded(path: Path, **keywords: Any) -> BandSplitRotator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_checkpoint(path, CONFIGURATION, upstream="hunterFormsBS", **keywords)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


# Honest files


@pytest.mark.parametrize("extra", range(300))
def test_safetensors_load_whatever_the_length_of_their_header(tmp_path: Path, extra: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ONE, path, metadata={"note": "x" * extra})
    assert torch.equal(read_state_dict(path)[next(iter(ONE))], next(iter(ONE.values())))


def test_what_trainers_keep_beside_the_weights_does_not_keep_them_from_loading(
    tmp_path: Path, model: BandSplitRotator
) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    content = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "best_metric": scheduler,
        "metrics": defaultdict(list, {"sdr": [np.float64(9.5), np.float32(1)], "counts": Counter("aab")}),
        "more": [
            np.arange(3),
            torch.Size((2, 3)),
            {1, 2},
            frozenset((1,)),
            slice(1, 2),
            3 + 4j,
            bytearray(b"a"),
            2**70,
        ],
        "path": Path("a"),
        "device": torch.device("cpu"),
        "type": torch.float16,
        "namespace": type(sys.implementation)(a=1),
    }
    for protocol in (2, 3, 4, 5):
        for archive in (True, False):
            path = saved(tmp_path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
            assert_same(loaded(path), model)


def test_frequencies_that_a_file_leaves_out_are_filled_in(tmp_path: Path, model: BandSplitRotator) -> None:
    shared = BandSplitRotator(**TINY).eval()
    frequencies = nn.Parameter(torch.tensor([0.5, 0.25]), requires_grad=False)
    for name, module in shared.named_modules():
        if name.endswith("rotary_embed"):
            module.freqs = frequencies
    path = tmp_path / "model.safetensors"
    state = shared.state_dict()
    _first, *copies = [key for key in state if key.endswith("rotary_embed.freqs")]
    save_file({key: tensor for key, tensor in state.items() if key not in copies}, path)
    with pytest.warns(UserWarning, match=r"lacks 3 tensors rotary_embed\.freqs, which are taken from the copy"):
        assert_same(from_checkpoint(path, CONFIGURATION, upstream="hunterFormsBS"), shared)
    without = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("freqs")}
    save_file(without, path)
    with pytest.warns(UserWarning, match=r"lacks 4 tensors rotary_embed\.freqs, which are taken from the formula"):
        filled = from_checkpoint(path, CONFIGURATION, upstream="hunterFormsBS")
    assert_same(filled, model)
    assert len({p.untyped_storage().data_ptr() for p in filled.parameters()}) == len(list(filled.parameters()))


def test_tensors_that_share_memory_in_the_file_become_parameters_of_their_own(tmp_path: Path) -> None:
    model = BandSplitRotator(**TINY)
    tied = model.state_dict()
    first, *rest = [key for key in tied if key.endswith("freqs")]
    tied |= dict.fromkeys(rest, tied[first])
    back = loaded(saved(tmp_path, tied))
    assert len({p.untyped_storage().data_ptr() for p in back.parameters()}) == len(list(back.parameters()))
    assert back.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", {"n_averaged": torch.tensor(3)}),
        ("ema_model.", {"initted": torch.tensor(data=True), "step": torch.tensor([7])}),
        ("model.", {"loss.window": torch.ones(4), "metric.total": torch.zeros(())}),
    ],
)
def test_tensors_beside_the_one_model_are_left_out_with_a_remark(
    tmp_path: Path, model: BandSplitRotator, prefix: str, beside: dict[str, Tensor]
) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()} | beside
    path = saved(tmp_path, {"state_dict": state})
    with pytest.warns(UserWarning, match=rf"{len(beside)} other tensors, which are left out: {next(iter(beside))}"):
        assert_same(from_checkpoint(path, CONFIGURATION, upstream="hunterFormsBS"), model)


def test_averaged_models_of_pytorch_load(tmp_path: Path, model: BandSplitRotator) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert_same(loaded(saved(tmp_path, averaged.state_dict())), model)


def test_archives_that_were_compressed_again_and_big_endian_files_load(tmp_path: Path, model: BandSplitRotator) -> None:
    path = saved(tmp_path, model.state_dict())
    again = tmp_path / "again.ckpt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(loaded(again), model)
    swapped = tmp_path / "swapped.ckpt"
    order = "big" if sys.byteorder == "little" else "little"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(swapped, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if "/data/" in name:
                data = np.frombuffer(data, dtype=np.float32).byteswap().tobytes()
            target.writestr(name, order if name.endswith("/byteorder") else data)
    assert_same(loaded(swapped), model)


# Code


def gadgets() -> list[str]:
    """Return expressions whose call by a pickle leaves a trace in the file that `{}` names."""
    return [
        "(__import__('os').system, ('touch {}',))",
        "(__import__('subprocess').Popen, (['touch', '{}'],))",
        "(__import__('subprocess').check_output, (['touch', '{}'],))",
        '(eval, (\'open("{}", "w")\',))',
        '(exec, (\'open("{}", "w")\',))',
        "(open, ('{}', 'w'))",
        "(__import__('pathlib').Path.touch, (__import__('pathlib').Path('{}'),))",
        "(__import__('os').mkdir, ('{}',))",
        "(__import__('shutil').copy, (__file__, '{}'))",
        "(__import__('runpy')._run_code, (compile_nothing, dict()))",
        "(__import__('importlib').import_module, ('antigravity',))",
        "(__import__('torch').save, (1, '{}'))",
        "(__import__('torch').load, ('{}',))",
        "(__import__('torch').hub.load, ('{}', 'a'))",
        "(__import__('logging').FileHandler, ('{}',))",
        "(__import__('numpy').save, ('{}', [1]))",
        "(__import__('functools').partial, (open, '{}', 'w'))",
        "(__import__('operator').methodcaller('touch'), (__import__('pathlib').Path('{}'),))",
        "(getattr, (__import__('os'), 'system'))",
        "(__import__('builtins').__import__, ('antigravity',))",
        "(__import__('timeit').timeit, ('open(\"{}\", \"w\")',))",
        "(__import__('pickle').loads, (b'cos\\nsystem\\n(S\"touch {}\"\\ntR.',))",
    ]


class Gadget:
    def __init__(self, called: tuple[Any, ...]) -> None:
        self.called = called

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def protocols_of(number: int) -> Iterator[int]:
    """Yield the protocols that can hold a gadget: what it calls has no name in the older ones, for some."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with suppress(TypeError, ValueError, AttributeError, pickle.PicklingError):
            pickle.dumps(Gadget(called_by(number, Path("trace"))), protocol=protocol)
            yield protocol


def called_by(number: int, trace: Path) -> tuple[Any, ...]:
    expression = gadgets()[number].format(trace)
    return cast("tuple[Any, ...]", eval(expression, {"compile_nothing": "open('trace', 'w')", "__file__": __file__}))


@pytest.mark.parametrize(
    ("number", "protocol"),
    [(number, protocol) for number in range(len(gadgets())) for protocol in protocols_of(number)],
)
def test_no_gadget_runs_in_any_protocol(tmp_path: Path, number: int, protocol: int) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps({"state_dict": {"a": Gadget(called_by(number, trace))}}, protocol=protocol)
    content: Any = unpickle(io.BytesIO(data))
    assert isinstance(content["state_dict"]["a"], Placeholder)
    assert not trace.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch trace'\ntR.",
        b"(S'touch trace'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch trace'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch trace\x85R.",
        b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch trace\x85\x81.",
        b"\x80\x04cos\nsystem\nX\x0b\x00\x00\x00touch trace\x85}\x92.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02cantigravity\nfly\n.",
        b"Pabc\n.",
        b"\x80\x05\x97\x98.",
    ],
)
def test_no_instruction_of_pickles_calls_or_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(unpickle(io.BytesIO(data)), Placeholder)
    assert not list(tmp_path.iterdir())
    assert "antigravity" not in sys.modules


def test_the_state_of_an_object_is_never_set() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (OrderedDict, (), {"a": 1}, None, iter([("b", 2)]))

    assert unpickle(io.BytesIO(pickle.dumps(Trap()))) == {"b": 2}


def test_torchscript_and_packages_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/constants.pkl", b"\x80\x02).")
    assert "TorchScript archive" in refusal(lambda: read_state_dict(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/.data/extern_modules", b"")
    assert "torch.package archive" in refusal(lambda: read_state_dict(path))


# What a file is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n<html lang='en'>", "web page"),
        (b"\xef\xbb\xbf<!doctype html>", "web page"),
        (b"Entry not found", "a server's message instead of the file"),
        (b"Not Found", "a server's message instead of the file"),
        (b"Invalid username or password.", "a server's message instead of the file"),
        (b"Access to model a/b is restricted.", "a server's message instead of the file"),
        (b'{"error":"Repository not found"}', "a server's message instead of the file"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"model:\n  dim: 8\n", "looks like a configuration: pass it as configuration"),
        (b'{"model": {"dim": 8}}', "looks like a configuration: pass it as configuration"),
        (b"\x80\x02}q\x00.", "a pickle that torch.save did not write"),
        (b"RIFF\x00\x00\x00\x00WAVE", "it is audio"),
        (b"PK\x03\x04" + bytes(40), "damaged or incomplete"),
        (b"\x80" + bytes(7) + b'{"a"', "its header would have 128 of 12 bytes"),
    ],
)
def test_files_are_named_as_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert message in refusal(lambda: read_state_dict(path))


def test_checkpoints_in_place_of_configurations_are_named(tmp_path: Path, model: BandSplitRotator) -> None:
    for keywords in ({}, {"_use_new_zipfile_serialization": False}):
        path = saved(tmp_path, model.state_dict(), **keywords)
        assert "looks like a checkpoint" in refusal(lambda path=path: from_checkpoint(path, path))
    save_file(ONE, tmp_path / "a.safetensors")
    assert "looks like a checkpoint" in refusal(lambda: read_configuration(tmp_path / "a.safetensors"))
    (tmp_path / "a.yaml").write_text("<!doctype html>\n", encoding="utf-8")
    assert "web page" in refusal(lambda: read_configuration(tmp_path / "a.yaml"))


@pytest.mark.parametrize("read", [read_state_dict, read_configuration])
def test_what_is_no_file_is_named(tmp_path: Path, read: Any) -> None:
    assert "it is a folder" in refusal(lambda: read(tmp_path), OSError)
    assert "is an address" in refusal(lambda: read("https://example.org/model.ckpt"), OSError)
    assert "repository on a hub" in refusal(lambda: read("owner/model"), OSError)
    assert "zero byte" in refusal(lambda: read("a\0b"))
    assert "a device or a pipe" in refusal(lambda: read("/dev/zero"))


@pytest.fixture(params=["folder", "pipe", "socket", "device"])
def no_file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = tmp_path / "model.ckpt"
    with socket.socket(socket.AF_UNIX) as listener:
        if request.param == "folder":
            path.mkdir()
        elif request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            listener.bind(os.path.relpath(path))  # the names of sockets are short
        else:
            path.symlink_to("/dev/zero")
        yield path


@pytest.mark.skipif(sys.platform == "win32", reason="makes pipes and sockets with names")
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("program", ["from_checkpoint", "separate", "info", "checkpoint"])
def test_every_program_ends_at_once_with_one_line_where_a_checkpoint_is_no_file(
    no_file: Path, program: str, configured: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "a.yaml"
    configuration.write_text("model: {dim: 8}")
    stated = ["--configuration", str(configuration)] if configured else []
    if program == "from_checkpoint":
        message = refusal(lambda: from_checkpoint(no_file, configuration if configured else None), OSError, ValueError)
    elif program == "checkpoint":
        assert main(["convert", str(no_file), "--output", str(tmp_path / "b.ckpt"), *stated]) == 1
        message = capsys.readouterr().err
    else:
        (tmp_path / "a.wav").write_bytes(b"")
        asked = (
            ["--info", str(no_file)] if program == "info" else [str(tmp_path / "a.wav"), "--checkpoint", str(no_file)]
        )
        output = [] if program == "info" else ["--output", str(tmp_path / "stems")]
        assert main([*asked, *output, *stated]) == 1
        message = capsys.readouterr().err
    assert "is not a checkpoint: it is a" in message
    assert message.count("\n") <= 1


# Files that hang, or take all memory


def hand_made(folder: Path, instructions: bytes, storages: dict[str, bytes] | None = None) -> Path:
    path = folder / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", instructions)
        for name, data in (storages or {}).items():
            archive.writestr(f"a/data/{name}", data)
    return path


def test_dictionaries_within_themselves_and_within_one_another_are_looked_at_once(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless |= dict.fromkeys(("model", "state", "ema", "net", "a", "b", "c", "d"), endless)
    assert "holds no weights" in refusal(lambda: read_state_dict(saved(tmp_path, {"model": endless})))
    wide: dict[str, Any] = {}
    for _ in range(6):
        wide = {f"model{number}": wide for number in range(39)} | {"model": wide}
    assert "holds no weights" in refusal(lambda: read_state_dict(saved(tmp_path, wide)))


@pytest.mark.parametrize(
    "key",
    [
        "layers.999999999.0.layers.0.0.to_qkv.weight",
        "band_split.to_features.1000000000000.1.weight",
        f"layers.{'9' * 450}.weight",
        f"layers.{'9' * 5000}.weight",
        "mask_estimators.99999999.to_freqs.0.0.0.weight",
    ],
)
def test_numbers_of_absurd_length_in_keys_are_refused(tmp_path: Path, model: BandSplitRotator, key: str) -> None:
    path = saved(tmp_path, {**model.state_dict(), key: torch.ones(1)})
    message = refusal(lambda: loaded(path))
    assert f"at most {limits.MOST_DIGITS} are read" in message or f"at most {limits.LONGEST_KEY} are read" in message


@pytest.mark.parametrize("key", ["layers.99999.0.layers.0.0.to_qkv.weight", "band_split.to_features.99999.1.weight"])
def test_missing_numbers_are_listed_in_part(tmp_path: Path, model: BandSplitRotator, key: str) -> None:
    path = saved(tmp_path, {**model.state_dict(), key: torch.ones(1)})
    assert "is missing" in refusal(lambda: loaded(path))


def tensor_pickle(count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    class Named:
        def __init__(self, storage: object) -> None:
            self.storage = storage

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch._utils._rebuild_tensor_v2, (Named(0), offset, shape, strides, False, OrderedDict()))

    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, protocol=2)  # type: ignore[attr-defined]
    storage = ("storage", torch.FloatStorage, "0", "cpu", count)
    pickler.persistent_id = lambda value: storage if isinstance(value, Named) else None
    pickler.dump({next(iter(ONE)): Rebuilt()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "shape", "strides", "offset"),
    [
        (4, (2**30, 2**10), (0, 0), 0),
        (4, (2**20,), (0,), 0),
        (4, (5,), (1,), 0),
        (4, (2, 2), (4, 1), 0),
        (4, (2,), (1,), 3),
        (4, (2,), (1,), 2**60),
        (4, (2**63, 2), (1, 1), 0),
        (4, (-1, 2), (1, 1), 0),
        (2**40, (2**40,), (1,), 0),
        (5, (5,), (1,), 0),
        (4, (1,) * 100, (1,) * 100, 0),
    ],
)
def test_tensors_that_are_larger_than_their_storage_are_refused(
    tmp_path: Path, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    path = hand_made(tmp_path, tensor_pickle(count, shape, strides, offset), {"0": bytes(16)})
    refusal(lambda: read_state_dict(path))


def test_a_tensor_of_all_its_storage_is_read(tmp_path: Path) -> None:
    path = hand_made(tmp_path, tensor_pickle(4, (2, 2), (1, 2)), {"0": np.arange(4, dtype=np.float32).tobytes()})
    assert torch.equal(next(iter(read_state_dict(path).values())), torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


def test_entries_that_expand_a_thousandfold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", tensor_pickle(2**22, (2**22,), (1,)))
        archive.writestr("a/data/0", bytes(2**24))
    assert f"at most {limits.LARGEST_EXPANSION} times" in refusal(lambda: read_state_dict(path))


def packed(path: Path, again: Path, method: int) -> bytearray:
    """Return an archive packed anew by a method of compression, which its entries name, and nothing else."""
    known = method if method in (0, 8, 12, 14) else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w", known) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    data = bytearray(again.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset : place + offset + 2] = method.to_bytes(2, "little")
            place = data.find(mark, place + 4)
    return data


# All that the format numbers, and two that it does not.
@pytest.mark.parametrize("method", [*range(21), *range(93, 100), 1000, 65535])
def test_archives_of_every_compression_load_or_say_which_they_have(
    tmp_path: Path, model: BandSplitRotator, method: int
) -> None:
    path = saved(tmp_path, model.state_dict())
    path.write_bytes(packed(path, tmp_path / "again.ckpt", method))
    if method in limits.COMPRESSIONS:
        assert_same(loaded(path), model)
    else:
        assert f"compressed by method {method}, and only" in refusal(lambda: read_state_dict(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_entries_of_every_compression_are_one_line(
    tmp_path: Path, model: BandSplitRotator, method: int
) -> None:
    path = saved(tmp_path, model.state_dict())
    whole = packed(path, tmp_path / "again.ckpt", method)
    for place in range(40, len(whole), len(whole) // 20):
        damaged = bytearray(whole)
        damaged[place : place + 4] = b"\xff\x00\xaa\x55"
        path.write_bytes(damaged)
        try:
            read_state_dict(path)  # what is damaged may be the numbers, which no one can tell
        except CheckpointError as error:
            assert str(error).isprintable()  # noqa: PT017  # not every place makes an error


def test_encrypted_archives_are_named(tmp_path: Path, model: BandSplitRotator) -> None:
    path = saved(tmp_path, model.state_dict())
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    assert "is encrypted" in refusal(lambda: read_state_dict(path))


def test_what_an_archive_claims_of_its_entries_is_checked(tmp_path: Path) -> None:
    path = hand_made(tmp_path, tensor_pickle(4, (4,), (1,)), {"0": bytes(8)})
    assert "a part is missing" in refusal(lambda: read_state_dict(path))
    assert "a part is missing" in refusal(lambda: read_state_dict(hand_made(tmp_path, tensor_pickle(4, (4,), (1,)))))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"}" * (limits.MOST_INSTRUCTIONS + 1),
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02)" + b"\x85" * 200_000 + b".",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little"),
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"\x80\x02I" + b"9" * 999 + b"\n.",
        b"\x80\x02ccollections\nOrderedDict\n" + b"]" * 1000 + b".",
        b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",
        b"\x80\x02" + b"2" * 10 + b".",
        b"\x80\x02",
        b"\x80\x02(.",
    ],
)
def test_pickles_that_ask_for_much_end_quickly(tmp_path: Path, data: bytes) -> None:
    refusal(lambda: read_state_dict(hand_made(tmp_path, data)))


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(4).to_sparse(),
        "quantised",
        torch.ones(4, device="meta"),
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, dtype=torch.bool),
        torch.ones(4, dtype=torch.complex64),
        torch.ones(4).to(torch.float8_e4m3fn),
        torch.ones(4).numpy(),
        nn.Linear(1, 1),
        "text",
        None,
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:TypedStorage:UserWarning")
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path: Path, model: BandSplitRotator, weight: object) -> None:
    key = "final_norm.gamma"
    if isinstance(weight, str) and weight == "quantised":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of PyTorch deprecate it
            weight = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    if isinstance(weight, Tensor) and weight.layout == torch.strided and not weight.is_quantized:
        weight = torch.empty(model.state_dict()[key].shape, dtype=weight.dtype, device=weight.device)
    path = saved(tmp_path, {**model.state_dict(), key: weight})
    assert key in refusal(lambda: loaded(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"b{n}: &b{n} [{', '.join(['*a' if not n else f'*b{n - 1}'] * 10)}]\n" for n in range(9)),
            "more than",
        ),
        ("&a\nmodel: *a\n", "holds itself"),
        ("[" * 2000, "cannot be read|nested"),
        ("a: " + "{a: " * 100 + "1" + "}" * 100, "deep"),
        ("a: !!bool abc", "not what its tag says"),
        ("a: !!timestamp abc", "not what its tag says"),
        ('a: !!int ""', "not what its tag says|cannot be read"),
        ("a: !!float x", "cannot be read"),
        ("? [1, 2]\n: 3", "list or a mapping|unhashable"),
        ("a: !!python/object/apply:os.system ['true']", "could run code"),
        ("a: 1\na: 2", "'a' is stated twice"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: \x1b[31m", "cannot be read"),
        ("just text", "holds str"),
        ("", "holds nothing"),
    ],
)
def test_yaml_that_is_wrong_or_multiplies_is_refused(tmp_path: Path, text: str, message: str) -> None:
    import re

    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    assert re.search(message, refusal(lambda: read_configuration(path)))


def test_configurations_of_many_keys_take_no_long(tmp_path: Path) -> None:
    start = time.process_time()
    many = {f"key{number}": number for number in range(60_000)}
    (tmp_path / "a.json").write_text(json.dumps(many), encoding="utf-8")
    assert len(read_configuration(tmp_path / "a.json")) == 60_000
    assert time.process_time() - start < 2
    (tmp_path / "a.yaml").write_text("\n".join(f"k{number}: 1" for number in range(5_000)), encoding="utf-8")
    assert len(read_configuration(tmp_path / "a.yaml")) == 5_000
    (tmp_path / "b.json").write_text("[" * 100_000, encoding="utf-8")
    assert "nested too deep" in refusal(lambda: read_configuration(tmp_path / "b.json"))
    (tmp_path / "c.yaml").write_bytes(b" " * (limits.LARGEST_TEXT + 1))
    assert f"{limits.LARGEST_TEXT:,} bytes" in refusal(lambda: read_configuration(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "model.safetensors.index.json"}},
        {"weight_map": {"a": ""}},
        {"weight_map": {}},
        {"weight_map": {"a": "b\0c"}},
        {"weight_map": {"a": "list.ckpt"}},
        {"weight_map": {"a": "wrapped.ckpt"}},
        {"weight_map": {"a": 3}},
        {"weight_map": [1]},
        {"weight_map": {"a": "absent.safetensors"}},
        {"weight_map": {str(n): f"{n}.safetensors" for n in range(limits.MOST_SHARDS + 1)}},
    ],
)
def test_an_index_that_lists_itself_or_no_state_dicts_is_refused(tmp_path: Path, index: object) -> None:
    saved(tmp_path, [torch.ones(1)], "list.ckpt")
    saved(tmp_path, {"state_dict": ONE}, "wrapped.ckpt")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")
    refusal(lambda: read_state_dict(path), CheckpointError, OSError)
    path.write_text("[" * 100_000, encoding="utf-8")
    assert "not an index" in refusal(lambda: read_state_dict(path))


@pytest.mark.parametrize("character", ["\x1b[2J", "\x9b31m", "\u202e", "\n", "\x07", "\u2028"])
def test_no_control_character_of_a_file_reaches_a_message(
    tmp_path: Path, model: BandSplitRotator, character: str
) -> None:
    state = model.state_dict()
    last = next(reversed(state))
    for content in (
        {**state, f"{character}extra": torch.ones(1)},
        {**state, f"layers.0.{character}": torch.ones(1)},
        {key: tensor for key, tensor in state.items() if key != last},
        {character: 3},
        {"state_dict": {f"layers.0.{character}": nn.Linear(1, 1)}},
    ):
        path = saved(tmp_path, content, f"m{character}.ckpt")
        refusal(lambda path=path: loaded(path))
    path = saved(tmp_path, state, "model.ckpt")
    for configuration in (
        {character: 3},
        {**CONFIGURATION, "stft_window_fn": character},
        {**CONFIGURATION, "model": character},
        {"model": {"x": character}, character: 1},
    ):
        refusal(lambda configuration=configuration: from_checkpoint(path, configuration), ValueError, TypeError)
    with pytest.warns(UserWarning, match="num_stems") as caught:
        from_checkpoint(path, {**CONFIGURATION, "num_stems": character}, upstream="hunterFormsBS")
    assert not any(character in str(warning.message) for warning in caught)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**21, -1, 0, "x", True, 1.5])
def test_absurd_transforms_are_refused_before_memory_is_asked_for(
    tmp_path: Path, model: BandSplitRotator, size: object
) -> None:
    path = saved(tmp_path, model.state_dict())
    refusal(lambda: from_checkpoint(path, CONFIGURATION, stft_n_fft=size), ValueError, TypeError)
    refusal(lambda: from_configuration({**CONFIGURATION, "stft_n_fft": size}), ValueError, TypeError)
    mel = {"dim": 8, "depth": 1, "num_bands": size, "sample_rate": 44100}
    refusal(lambda: from_configuration(mel), ValueError, TypeError)


HELD = (
    "import re\nheld = lambda kind: 1024 * int(re.search(kind + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
)
"""Defines what a program held: `held("VmHWM")` at most, `held("VmRSS")` now."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process held")


@linux_only
def test_only_the_models_tensors_come_into_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": ONE, "optimizer": {"a": torch.zeros(80_000_000)}})
    program = HELD + (
        "import sys; from hunterFormsBS.checkpoint import read_state_dict\n"
        "before = held('VmRSS')\n"
        "read_state_dict(sys.argv[1])\n"
        "print(held('VmHWM') - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6  # the optimizer's tensor has 320 MB


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_real_sized_checkpoint_takes_little_more_memory_than_its_weights(
    tmp_path: Path, keywords: dict[str, Any]
) -> None:
    stated = {"dim": 512, "depth": 12, "stereo": True, "time_transformer_depth": 1, "freq_transformer_depth": 1}
    path = saved(tmp_path, BandSplitRotator(**stated).state_dict(), **keywords)
    program = HELD + (
        "import sys, warnings; from hunterFormsBS.checkpoint import from_checkpoint\n"
        "warnings.simplefilter('ignore')\n"
        "before = held('VmRSS')\n"
        "model = from_checkpoint(sys.argv[1])\n"
        "print((held('VmHWM') - before) / sum(p.nbytes for p in model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3
