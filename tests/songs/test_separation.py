"""Whole songs: what overlap-add promises, shown with stand-ins for the model."""

from __future__ import annotations

import gc
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator, estimates
from hunterFormsBS.kernels.int8 import in_int8
from hunterFormsBS.overlapAdd import Chunks
from hunterFormsBS.parametersSeparation import BLENDS, Blend, ParametersSeparation
from hunterFormsBS.separation import separate, separate_stream
from tests.models import TINY

CHUNK = 1000


@pytest.fixture(autouse=True)
def _processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "multiplies_bfloat16", lambda: True)


def identity(audio: Tensor) -> Tensor:
    """Return the mixture as the only stem."""
    return audio[:, None]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return audio between -1 and 1 that is the same in every run."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=dtype) * 2 - 1


class Recorder:
    """Return the mixture as the only stem and keep a copy of every batch."""

    def __init__(self, stereo: bool | None = None) -> None:
        self.batches: list[Tensor] = []
        if stereo is not None:
            self.stereo = stereo

    def __call__(self, audio: Tensor) -> Tensor:
        self.batches.append(audio.clone())
        return identity(audio)

    @property
    def chunks(self) -> list[Tensor]:
        """All chunks `(s, t)` in the order in which they came."""
        return [chunk for batch in self.batches for chunk in batch]


class GainPerChunk:
    """Return constant stems: 1 for the chunks whose number is in the list, 0 for the others."""

    def __init__(self, loud: Callable[[int], bool]) -> None:
        self.loud = loud
        self.count = 0

    def __call__(self, audio: Tensor) -> Tensor:
        gains = [float(self.loud(self.count + offset)) for offset in range(len(audio))]
        self.count += len(audio)
        return torch.tensor(gains)[:, None, None, None].expand(-1, 1, *audio.shape[1:])


class Layers(nn.Module):
    """A module with parameters and a submodule that trains while another does not."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Dropout(0.9)
        self.train()
        self.frozen.eval()
        self.failing = False
        self.moves: list[object] = []

    def to(self, device: object) -> Layers:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Note where the module was moved."""
        self.moves.append(device)
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """Return the mixture multiplied by the gain."""
        if self.failing:
            message = "no such thing"
            raise RuntimeError(message)
        return identity(self.frozen(self.dropout(audio * self.gain)))


# The overlap-add itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("num_overlap", range(1, 9))
@pytest.mark.parametrize("length", [1, 2, 441, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_identity_model_gives_the_mixture_back_at_every_sample(length: int, num_overlap: int, batch_size: int) -> None:
    mixture = noise(2, length)
    stems = separate(identity, mixture, chunk_size=CHUNK, num_overlap=num_overlap, batch_size=batch_size)
    assert stems.shape == (1, 2, length)
    assert (stems[0] - mixture).abs().max() <= 1e-6


@settings(max_examples=150)
@given(
    length=st.integers(1, 700),
    chunk_size=st.integers(8, 150),
    num_overlap=st.integers(1, 8),
    batch_size=st.integers(1, 6),
)
@example(length=700, chunk_size=8, num_overlap=8, batch_size=5)
@example(length=17, chunk_size=16, num_overlap=1, batch_size=2)
def test_identity_holds_for_any_length_and_any_chunk_size(
    length: int, chunk_size: int, num_overlap: int, batch_size: int
) -> None:
    mixture = noise(1, length)
    stems = separate(identity, mixture, chunk_size=chunk_size, num_overlap=num_overlap, batch_size=batch_size)
    assert (stems[0] - mixture).abs().max() <= 1e-6


@settings(max_examples=60)
@given(num_overlap=st.integers(2, 8), length=st.integers(CHUNK + 1, 5 * CHUNK), seed=st.integers(0, 99))
@example(num_overlap=2, length=CHUNK + 1, seed=1)
@example(num_overlap=3, length=2 * CHUNK + 1, seed=1)
def test_a_gain_that_differs_per_chunk_makes_no_step_larger_than_the_window_explains(
    num_overlap: int, length: int, seed: int
) -> None:
    loud = np.random.default_rng(seed).integers(0, 2, size=64)
    model = GainPerChunk(lambda index: bool(loud[index] if seed else index % 2))
    stems = separate(model, torch.zeros(1, length), chunk_size=CHUNK, num_overlap=num_overlap)
    # A squared sine over L samples climbs by at most pi / (2 L) a sample, and at most num_overlap + 2 windows move at
    # a time: one more than overlap regularly where the step does not divide the chunk, one more at the end.
    fade = min(CHUNK // 2, CHUNK - CHUNK // num_overlap)
    assert stems.diff().abs().max() <= (num_overlap + 2) * math.pi / (2 * fade)
    assert stems.min() >= 0
    assert stems.max() <= 1 + 1e-6


def test_two_chunks_cross_over_as_squared_sine_and_cosine() -> None:
    stems = separate(GainPerChunk(lambda index: index == 1), torch.zeros(1, 1500), chunk_size=CHUNK)
    expected = [0.0] * 500 + [math.sin(math.pi * (t + 0.5) / 1000) ** 2 for t in range(500)] + [1.0] * 500
    torch.testing.assert_close(stems[0, 0], torch.tensor(expected), rtol=0, atol=1e-6)


def test_chunks_that_abut_switch_between_two_samples_and_only_there() -> None:
    model = GainPerChunk(lambda index: index % 2 == 1)
    stems = separate(model, torch.zeros(1, 4 * CHUNK), chunk_size=CHUNK, num_overlap=1)
    expected = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(CHUNK)
    assert torch.equal(stems[0, 0], expected)


def test_the_last_chunk_moved_back_is_faded_in_also_where_the_others_abut() -> None:
    stems = separate(GainPerChunk(lambda index: index == 2), torch.zeros(1, 2600), chunk_size=CHUNK, num_overlap=1)
    assert torch.equal(stems[0, 0, :1600], torch.zeros(1600))
    assert torch.equal(stems[0, 0, 2000:], torch.ones(600))
    assert stems.diff().abs().max() <= math.pi / 2 / 400 + 1e-6


def test_weights_depend_on_the_chunk_and_not_on_its_batch() -> None:
    mixture = noise(2, 7321)

    def model(audio: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, audio.shape[-1])
        return torch.stack([torch.tanh(3 * audio * ramp), audio.cumsum(-1), audio.square()], dim=1)

    one, *others = [
        separate(model, mixture, chunk_size=CHUNK, num_overlap=3, batch_size=batch_size)
        for batch_size in (1, 2, 5, 100)
    ]
    assert one.shape == (3, 2, 7321)
    for other in others:
        assert torch.equal(one, other)


def test_chunks_begin_at_the_documented_samples_and_the_last_ends_with_the_song() -> None:
    model = Recorder()
    separate(model, torch.arange(2750.0), chunk_size=CHUNK, num_overlap=2, batch_size=2)
    assert [int(chunk[0, 0]) for chunk in model.chunks] == [0, 500, 1000, 1500, 1750]
    assert all(torch.equal(chunk[0].diff(), torch.ones(CHUNK - 1)) for chunk in model.chunks)


def test_a_short_song_is_continued_by_its_mirror_image_and_then_by_silence() -> None:
    model = Recorder()
    separate(model, torch.tensor([1.0, 2.0, 3.0, 4.0]), chunk_size=10)
    separate(model, torch.tensor([1.0, 2.0, 3.0, 4.0]), chunk_size=6)
    separate(model, torch.tensor([1.0]), chunk_size=3)
    expected = ([1.0, 2, 3, 4, 3, 2, 1, 0, 0, 0], [1.0, 2, 3, 4, 3, 2], [1.0, 0, 0])
    for chunk, samples in zip(model.chunks, expected, strict=True):
        assert torch.equal(chunk[0], torch.tensor(samples))


# Memory -------------------------------------------------------------------------------------------------------------


def test_the_model_sees_one_batch_at_a_time_whatever_the_length() -> None:
    for length in (3000, 30000):
        model = Recorder()
        separate(model, noise(2, length), chunk_size=CHUNK, batch_size=3)
        assert {batch.shape for batch in model.batches[:-1]} == {(3, 2, CHUNK)}
        assert len(model.chunks) == 2 * length // CHUNK - 1


def test_the_estimates_of_a_batch_are_released_before_the_model_is_called_again() -> None:
    alive: set[int] = set()
    found: list[int] = []

    def model(audio: Tensor) -> Tensor:
        gc.collect()
        found.append(len(alive))
        memory = np.zeros((audio.shape[0], 4, *audio.shape[1:]), dtype=np.float32)
        alive.add(id(memory))
        weakref.finalize(memory, alive.discard, id(memory))
        return torch.as_tensor(memory)  # The tensor's storage keeps the array alive.

    separate(model, noise(2, 9 * CHUNK), chunk_size=CHUNK, batch_size=2)
    assert found == [0] * 9


def test_the_mixture_survives_a_model_that_writes_into_its_input() -> None:
    mixture = noise(1, 2500)
    before = mixture.clone()
    separate(lambda audio: audio.zero_()[:, None], mixture, chunk_size=CHUNK)
    assert torch.equal(mixture, before)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_until_it_fits_and_says_so(error: Exception) -> None:
    sizes: list[int] = []

    def model(audio: Tensor) -> Tensor:
        sizes.append(len(audio))
        if len(audio) > 2:
            raise error
        return identity(audio)

    mixture = noise(2, 6 * CHUNK)
    with pytest.warns(RuntimeWarning, match="`batch_size`") as caught:
        stems = separate(model, mixture, chunk_size=CHUNK, batch_size=8)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [str(warning.message).split()[-1] for warning in caught] == ["4.", "2."]
    assert {warning.filename for warning in caught} == {__file__}
    assert (stems[0] - mixture).abs().max() <= 1e-6


def test_what_the_failed_batch_held_is_released_before_the_smaller_one_is_tried() -> None:
    failed: list[weakref.ref[Tensor]] = []

    def model(audio: Tensor) -> Tensor:
        assert [reference() for reference in failed] == [None] * len(failed)
        if len(audio) > 1:
            activations = audio * 2
            failed.extend((weakref.ref(audio), weakref.ref(activations)))
            raise torch.OutOfMemoryError
        return identity(audio)

    with pytest.warns(RuntimeWarning, match="out of memory"):
        separate(model, noise(1, 4 * CHUNK), chunk_size=CHUNK, batch_size=4)
    assert len(failed) == 4


def test_out_of_memory_with_one_chunk_is_raised_with_the_remedy() -> None:
    def model(audio: Tensor) -> Tensor:
        message = "CUDA out of memory."
        raise torch.OutOfMemoryError(message)

    with pytest.raises(torch.OutOfMemoryError, match=r"single chunk of 1000 samples.*smaller `chunk_size`") as caught:
        separate(model, noise(1, 1500), chunk_size=CHUNK)
    assert str(caught.value.__cause__) == "CUDA out of memory."


def test_any_other_error_of_the_model_comes_out_as_it_is_and_at_once() -> None:
    calls: list[int] = []

    def model(audio: Tensor) -> Tensor:
        calls.append(len(audio))
        message = "The size of tensor a (3) must match"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="The size of tensor a"):
        separate(model, noise(1, 4000), chunk_size=CHUNK, batch_size=4)
    assert calls == [4]


# Channels, dtypes, devices, modes -----------------------------------------------------------------------------------


def test_mono_is_duplicated_for_a_stereo_model() -> None:
    mixture = noise(1500)
    for audio in (mixture, mixture[None]):
        model = Recorder(stereo=True)
        stems = separate(model, audio, chunk_size=CHUNK)
        assert {chunk.shape for chunk in model.chunks} == {(2, CHUNK)}
        torch.testing.assert_close(stems, mixture.expand(1, 2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stereo", "channels"), [(True, 2), (False, 1), (None, 1), (None, 2), (None, 6)])
def test_matching_channels_pass_as_they_are(stereo: bool | None, channels: int) -> None:
    model = Recorder(stereo)
    assert separate(model, noise(channels, 50), chunk_size=50).shape == (1, channels, 50)


@pytest.mark.parametrize(
    ("stereo", "channels", "remedy"),
    [(False, 3, "Mix"), (True, 3, "Mix"), (False, 44100, "transpose")],
)
def test_channels_that_the_model_does_not_take_are_refused_with_the_remedy(
    stereo: bool, channels: int, remedy: str
) -> None:
    model = Recorder(stereo)
    with pytest.raises(ValueError, match=f"received {channels}.*{remedy}"):
        separate(model, torch.zeros(channels, 2))
    assert model.batches == []


def test_a_module_runs_in_eval_mode_without_gradients_and_gets_its_training_flags_back() -> None:
    model = Layers()
    mixture = noise(2, 2500).requires_grad_()
    stems = separate(model, mixture, chunk_size=CHUNK)
    torch.testing.assert_close(stems[0], 2 * mixture.detach(), rtol=0, atol=2e-6)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert not stems.requires_grad


def test_training_flags_come_back_after_an_error() -> None:
    model = Layers()
    model.failing = True
    with pytest.raises(RuntimeError, match="no such thing"):
        separate(model, noise(2, 2500))
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_stems_can_take_part_in_a_backward_pass() -> None:
    stems = separate(identity, noise(1, 1500), chunk_size=CHUNK)
    gain = torch.tensor(1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad((stems * gain).sum(), gain)
    assert float(gradient) == pytest.approx(float(stems.sum()))


def test_a_module_is_moved_only_when_a_device_is_given() -> None:
    model = Layers()
    separate(model, noise(1, 10), chunk_size=10)
    assert model.moves == []
    separate(model, noise(1, 10), chunk_size=10, device="cpu")
    assert model.moves == ["cpu"]


def test_half_precision_is_autocast_and_float32_switches_autocast_off() -> None:
    weight = torch.eye(50)
    seen: list[torch.dtype] = []

    def model(audio: Tensor) -> Tensor:
        product = audio @ weight
        seen.append(product.dtype)
        return identity(product)

    mixture = noise(1, 50)
    stems = separate(model, mixture, chunk_size=50, dtype=torch.bfloat16)
    torch.testing.assert_close(stems[0], mixture.bfloat16().float(), rtol=0, atol=0)
    separate(model, mixture, chunk_size=50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        separate(model, mixture, chunk_size=50)
        separate(model, mixture, chunk_size=50, dtype=torch.float32)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("dtype_mixture", "module", "expected"),
    [
        (torch.float64, None, torch.float64),
        (torch.float64, Layers().double(), torch.float64),
        (torch.float64, Layers(), torch.float32),
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
    ],
)
def test_audio_is_float64_only_where_mixture_and_model_are(
    dtype_mixture: torch.dtype, module: Layers | None, expected: torch.dtype
) -> None:
    mixture = noise(1, 3000, dtype=torch.float64).to(dtype_mixture)
    model = identity if module is None else module
    stems = separate(model, mixture, chunk_size=CHUNK, num_overlap=5)
    assert stems.dtype == expected
    gain = 1 if module is None else 2
    assert (stems[0] - gain * mixture).abs().max() <= (1e-14 if expected == torch.float64 else 2e-6)


# Progress -----------------------------------------------------------------------------------------------------------


def test_the_callback_counts_chunks_up_to_their_number() -> None:
    seen: list[tuple[int, int]] = []
    separate(
        identity,
        noise(1, 2750),
        chunk_size=CHUNK,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_the_progress_bar_goes_to_the_standard_error_stream_and_nothing_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    separate(identity, noise(1, 2750), chunk_size=CHUNK, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5/5" in captured.err
    separate(identity, noise(1, 2750), chunk_size=CHUNK)
    assert capsys.readouterr() == ("", "")


def test_a_progress_bar_without_tqdm_names_the_extra_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    model = Recorder()
    with pytest.raises(ImportError, match=r"tqdm: .* -m pip install"):
        separate(model, noise(1, 10), progress=True)
    assert model.batches == []


# Bad input and output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be from 1 to .*: received 0"),
        ({"chunk_size": 10**20}, ValueError, "`chunk_size` must be from 1 to .*: received 1000"),
        ({"chunk_size": 10.5}, TypeError, "`chunk_size` must be an integer: received 10.5"),
        ({"num_overlap": 0}, ValueError, "`num_overlap`.*received 0"),
        ({"num_overlap": True}, TypeError, "`num_overlap`.*received True"),
        ({"num_overlap": 8, "chunk_size": 7}, ValueError, "received 8 and 7"),
        ({"batch_size": -1}, ValueError, "`batch_size`.*received -1"),
        ({"dtype": torch.float64}, ValueError, r"`dtype`.*received torch\.float64"),
        ({"dtype": torch.int16}, ValueError, r"`dtype`.*received torch\.int16"),
        ({"dtype": "bfloat16"}, ValueError, "`dtype`.*received 'bfloat16'"),
        ({"mixture": torch.zeros(2, 9, dtype=torch.int16)}, TypeError, r"received torch\.int16.*mixture / 32768"),
        ({"mixture": torch.zeros(2, 9, dtype=torch.complex64)}, TypeError, r"received torch\.complex64"),
        ({"mixture": np.zeros((2, 9))}, TypeError, "received ndarray.*torch.from_numpy"),
        ({"mixture": torch.zeros(1, 2, 9)}, ValueError, r"received shape \(1, 2, 9\)"),
        ({"mixture": torch.tensor(0.0)}, ValueError, r"received shape \(\)"),
        ({"mixture": torch.zeros(2, 0)}, ValueError, r"received shape \(2, 0\)"),
        ({"mixture": torch.tensor([[0, 1.0, 2, 3], [0, 1, 2, math.nan]])}, ValueError, "1 samples.*index 3"),
        ({"mixture": torch.tensor([0, -math.inf, 2, math.inf])}, ValueError, "2 samples.*index 1"),
    ],
)
def test_bad_arguments_are_refused_with_the_value_before_the_model_runs(
    keywords: dict[str, object], error: type[Exception], message: str
) -> None:
    model = Recorder()
    arguments = {"mixture": torch.zeros(2, 9), **keywords}
    with pytest.raises(error, match=message):
        separate(model, **arguments)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert model.batches == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_an_estimate_that_is_not_finite_names_the_chunk_and_its_samples(value: float, batch_size: int) -> None:
    def model(audio: Tensor) -> Tensor:
        return torch.where(audio == 1700, value, audio)[:, None]

    with pytest.raises(RuntimeError, match=r"chunk 2 of 4.*samples 1000 to 1999.*torch\.float32.*weights"):
        separate(model, torch.arange(2300.0), chunk_size=CHUNK, num_overlap=2, batch_size=batch_size)


def test_an_estimate_that_is_not_finite_names_the_dtype_of_the_computation() -> None:
    weight = torch.eye(10) * 1e5
    mixture = torch.ones(1, 10)
    with pytest.raises(RuntimeError, match=r"torch\.float16.*Run in float32"):
        separate(lambda audio: identity(audio @ weight), mixture, chunk_size=10, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(RuntimeError, match=r"torch\.float16"):
        separate(lambda audio: identity(audio @ weight), mixture, chunk_size=10)
    assert separate(lambda audio: identity(audio @ weight), mixture, chunk_size=10).max() == 1e5


OUTPUTS_REFUSED: list[tuple[Callable[[Tensor], object], str]] = [
    (lambda audio: audio, r"torch\.float32 \(1, 2, 1000\)"),
    (lambda audio: audio[:, None, :, :-1], r"\(1, 1, 2, 999\).*hop length"),
    (lambda audio: audio[:, None, :1], r"\(1, 1, 1, 1000\)"),
    (lambda audio: audio[:, :0, None].expand(-1, -1, 2, -1), r"\(1, 0, 2, 1000\)"),
    (lambda audio: audio[:, None].expand(2, -1, -1, -1), r"\(2, 1, 2, 1000\)"),
    (lambda audio: audio[:, None].int(), r"torch\.int32"),
    (lambda audio: (audio[:, None], audio), "received tuple"),
]


@pytest.mark.parametrize(("model", "received"), OUTPUTS_REFUSED)
def test_output_that_is_not_one_estimate_per_chunk_is_refused(model: Callable[[Tensor], Tensor], received: str) -> None:
    with pytest.raises(RuntimeError, match=received):
        separate(model, noise(2, 1500), chunk_size=CHUNK)


def test_a_number_of_stems_that_changes_is_refused() -> None:
    counts = iter([2, 3])
    with pytest.raises(RuntimeError, match=r"\(1, 2, 1, 1000\): received torch\.float32 \(1, 3, 1, 1000\)"):
        separate(lambda audio: audio[:, None].expand(-1, next(counts), -1, -1), noise(1, 1500), chunk_size=CHUNK)


def test_nothing_is_warned_about_when_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stems = separate(Layers(), noise(2, 2500), chunk_size=CHUNK, dtype=torch.bfloat16)
    assert stems.shape[-1] == 2500


# Streams ------------------------------------------------------------------------------------------------------------


def nonlinear(audio: Tensor) -> Tensor:
    """Return two stems that depend on where in a chunk a sample is."""
    return torch.stack([torch.tanh(3 * audio * torch.linspace(-1, 1, audio.shape[-1])), audio.cumsum(-1)], dim=1)


def cut(mixture: Tensor, places: list[int]) -> list[Tensor]:
    """Return a song in blocks that end at these samples."""
    ends = [*sorted(place for place in places if place < mixture.shape[-1]), mixture.shape[-1]]
    return [mixture[:, start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


@settings(max_examples=200)
@given(
    length=st.integers(1, 900),
    chunk_size=st.integers(8, 200),
    num_overlap=st.floats(1, 8),
    batch_size=st.integers(1, 6),
    places=st.lists(st.integers(0, 900), max_size=20),
)
@example(length=900, chunk_size=8, num_overlap=1.5, batch_size=5, places=list(range(900)))
@example(length=1, chunk_size=200, num_overlap=2.0, batch_size=1, places=[])
def test_a_stream_gives_what_separate_gives_whatever_the_blocks(
    length: int, chunk_size: int, num_overlap: float, batch_size: int, places: list[int]
) -> None:
    mixture = noise(2, length)
    keywords = {"chunk_size": chunk_size, "num_overlap": num_overlap, "batch_size": batch_size}
    expected = separate(nonlinear, mixture, **keywords)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    blocks = iter(cut(mixture, places))
    stems = torch.cat(list(separate_stream(nonlinear, blocks, **keywords)), dim=-1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(stems, expected, rtol=0, atol=1e-6)
    same = separate(identity, mixture, chunk_size=chunk_size, num_overlap=num_overlap)
    assert (same[0] - mixture).abs().max() <= 1e-6


class Counted:
    """Blocks of 100 samples, and how many samples were read of them, and were alive at most."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = self.alive = self.most = 0

    def __iter__(self) -> Iterator[Tensor]:
        for _block in range(self.count):
            array = np.ones((1, 100), dtype=np.float32)
            self.alive, self.read = self.alive + 100, self.read + 100
            weakref.finalize(array, self._release)
            self.most = max(self.most, self.alive)
            yield torch.from_numpy(array)
            del array

    def _release(self) -> None:
        self.alive -= 100


@pytest.mark.parametrize(("blend", "ahead"), [("smooth", 3.5), ("msst", 4.5)])
def test_a_stream_holds_a_few_chunks_and_gives_samples_as_soon_as_they_are_final(blend: Blend, ahead: float) -> None:
    blocks, done = Counted(300), 0
    for stems in separate_stream(identity, blocks, chunk_size=CHUNK, batch_size=2, blend=blend):
        done += stems.shape[-1]
        assert blocks.read <= done + ahead * CHUNK
    assert done == 30000
    assert blocks.most <= (ahead + 0.5) * CHUNK


def test_a_stream_ends_at_once_when_it_is_closed_and_lets_go_of_its_blocks() -> None:
    model, ended = Layers(), []

    def blocks() -> Iterator[Tensor]:
        try:
            while True:
                yield noise(2, CHUNK)
        finally:
            ended.append(True)

    source = blocks()
    stream = separate_stream(model, source, chunk_size=CHUNK)
    next(stream)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
    del source, stream
    gc.collect()
    assert ended == [True]


def test_what_the_source_of_blocks_raises_passes_through() -> None:
    def blocks() -> Iterator[Tensor]:
        yield noise(1, 3 * CHUNK)
        message = "the pipe broke"
        raise BrokenPipeError(message)

    stream = separate_stream(identity, blocks(), chunk_size=CHUNK)
    next(stream)
    with pytest.raises(BrokenPipeError, match="the pipe broke"):
        list(stream)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "no block"),
        ([torch.zeros(2, 0), torch.zeros(2, 0)], ValueError, "no samples"),
        ([torch.zeros(2, 5), torch.zeros(1, 5)], ValueError, "at sample 5 has 1 channels"),
        ([torch.zeros(5), torch.zeros(5).double()], ValueError, r"at sample 5 .*float64"),
        ([torch.zeros(5), torch.tensor([0.0, math.nan])], ValueError, "`block`.*index 6"),
        ([torch.zeros(5), torch.zeros(5, dtype=torch.int16)], TypeError, "`block`.*int16"),
        ([torch.zeros(5), b"abc"], TypeError, "`block`.*bytes"),
        (torch.zeros(2, 5), TypeError, r"one tensor of shape \(2, 5\). Pass it in a list"),
    ],
)
def test_bad_blocks_are_refused_with_their_place(blocks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(separate_stream(identity, blocks, chunk_size=10))


def test_progress_of_a_stream_counts_to_the_expected_length_and_to_what_came() -> None:
    for length, totals in ((2750, {5}), (None, {2, 4, 5}), (9000, {17, 5})):
        seen: list[tuple[int, int]] = []
        stream = separate_stream(
            identity,
            cut(noise(1, 2750), [1500]),
            length=length,
            chunk_size=CHUNK,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        list(stream)
        assert [done for done, _total in seen] == [1, 2, 3, 4, 5]
        assert seen[-1] == (5, 5)
        assert {total for _done, total in seen} <= totals


# Overlap, silence, augmentation, channels -----------------------------------------------------------------------------


@pytest.mark.parametrize(("num_overlap", "step"), [(1, 1000), (1.25, 800), (1.5, 666), (2, 500), (3, 333), (4.0, 250)])
def test_chunks_begin_every_chunk_size_over_overlap(num_overlap: float, step: int) -> None:
    model = Recorder()
    separate(model, torch.arange(5000.0), chunk_size=CHUNK, num_overlap=num_overlap)
    starts = [int(chunk[0, 0]) for chunk in model.chunks]
    assert starts == [*range(0, 4000, step), 4000]


def counting(model: BandSplitRotator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the number of chunks of every call of a model."""
    calls: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda audio: calls.append(len(audio)) or forward(audio))
    return calls


@pytest.mark.parametrize("batch_size", [1, 3])
def test_silent_chunks_are_not_given_to_a_model_of_this_package(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = BandSplitRotator(**TINY | {"stereo": True, "num_stems": 2}).eval()
    mixture = noise(2, 8 * 256)
    mixture[:, 700:1500] = 0
    with torch.no_grad():
        assert not model(torch.zeros(1, 2, 256)).any()
    expected = separate(lambda audio: model(audio), mixture, chunk_size=256, batch_size=batch_size)
    calls = counting(model, monkeypatch)
    stems = separate(model, mixture, chunk_size=256, batch_size=batch_size)
    torch.testing.assert_close(stems, expected, rtol=0, atol=1e-6)
    starts = range(0, 7 * 256 + 1, 128)
    assert sum(calls) == sum(bool(mixture[:, start : start + 256].any()) for start in starts) < len(starts)
    assert not separate(model, torch.zeros(2, 900), chunk_size=256).any()


def test_other_models_get_silence_too() -> None:
    stems = separate(lambda audio: audio[:, None] + 1, torch.zeros(1, 2500), chunk_size=CHUNK)
    torch.testing.assert_close(stems, torch.ones(1, 1, 2500))


def test_augmentation_is_the_mean_over_channels_exchanged_and_polarity_inverted() -> None:
    mixture = noise(2, CHUNK)
    left, right = mixture

    def model(audio: Tensor) -> Tensor:
        return (audio.square() * torch.tensor([[1.0], [3.0]]))[:, None] + audio[:, None]

    stems = separate(model, mixture, chunk_size=CHUNK, tta=True)
    # The squares of the polarity inverted cancel those of the song; exchanged channels come back with the other gain.
    expected = torch.stack([left + 3 * left.square() / 3, right + right.square() / 3])
    torch.testing.assert_close(stems[0], expected)
    mono = separate(lambda audio: audio.square()[:, None] + audio[:, None], mixture[:1], chunk_size=CHUNK, tta=True)
    torch.testing.assert_close(mono[0], mixture[:1])


def test_each_channel_of_a_stereo_song_goes_through_a_mono_model_by_itself() -> None:
    mixture = noise(2, 3500)
    model = Recorder(stereo=False)

    class TwoStems:
        stereo = False

        def __call__(self, audio: Tensor) -> Tensor:
            return torch.cat([identity(audio), 2 * model(audio)], dim=1)

    stems = separate(TwoStems(), mixture, chunk_size=CHUNK, batch_size=2)
    assert {batch.shape for batch in model.batches} == {(4, 1, CHUNK)}
    torch.testing.assert_close(stems, torch.stack([mixture, 2 * mixture]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_overlap", [0.5, math.nan, math.inf, -2.0])
def test_overlaps_below_one_are_refused(num_overlap: float) -> None:
    with pytest.raises(ValueError, match="`num_overlap` must be at least 1: received"):
        separate(identity, noise(1, 10), num_overlap=num_overlap)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_chunks_shorter_than_a_window_are_refused_before_anything_is_computed(wrap: Callable[[nn.Module], Any]) -> None:
    model = BandSplitRotator(**TINY)
    window = model.configuration["stft_win_length"]
    with pytest.raises(ValueError, match=rf"one window of the model's transform, {window} samples: received 8"):
        separate(wrap(model), noise(1, 44100), chunk_size=8)
    separate(model, noise(1, 2 * window), chunk_size=window)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense", "mps:7", "hpu"])
def test_a_device_that_is_not_there_is_refused_with_a_sentence(device: str) -> None:
    with pytest.raises(ValueError, match=r"`device='(cuda:99|meta|nonsense|mps:7|hpu)'`") as caught:
        separate(identity, noise(1, 10), device=device)
    assert len(str(caught.value).splitlines()) == 1


def test_bfloat16_on_a_processor_without_it_is_warned_about_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "multiplies_bfloat16", lambda: False)
    with pytest.warns(RuntimeWarning, match="no instructions for bfloat16") as caught:
        stems = separate(Layers(), noise(2, 2500), chunk_size=CHUNK, dtype=torch.bfloat16)
    assert stems.shape[-1] == 2500
    assert [warning.filename for warning in caught] == [__file__]


def test_int8_is_the_model_in_int8() -> None:
    model = BandSplitRotator(**TINY | {"dim": 48, "dim_head": 16}).eval()
    mixture = noise(1, 400)
    stems = separate(model, mixture, chunk_size=400, num_overlap=1, dtype=torch.int8)
    with torch.no_grad():
        expected = model(mixture[None])[0]
        with in_int8():
            torch.testing.assert_close(stems, model(mixture[None])[0], rtol=0, atol=1e-6)
    assert 0 < float((stems - expected).norm() / expected.norm()) < 0.05


def test_int8_where_nothing_can_be_computed_so_is_warned_about_once_a_call() -> None:
    with pytest.warns(RuntimeWarning, match="nothing was computed in int8") as caught:
        stems = separate(Layers(), noise(2, 2500), chunk_size=CHUNK, dtype=torch.int8)
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(stems, separate(Layers(), noise(2, 2500), chunk_size=CHUNK))


def test_int8_is_refused_on_other_devices_before_the_model_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "unusable", lambda _: None)
    with pytest.raises(ValueError, match=r"int8.*CPU only: received the device 'cuda:1'"):
        separate(Layers(), noise(1, 10), device="cuda:1", dtype=torch.int8)


# Parts of a song ------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    length=st.integers(1, 900),
    chunk_size=st.integers(40, 200),
    num_overlap=st.floats(1, 4),
    batch_size=st.integers(1, 6),
    part=st.tuples(st.integers(0, 899), st.integers(1, 900)),
    places=st.lists(st.integers(0, 900), max_size=5),
)
@example(length=900, chunk_size=100, num_overlap=2.0, batch_size=4, part=(890, 10), places=[450])
@example(length=850, chunk_size=100, num_overlap=1.0, batch_size=1, part=(790, 20), places=[450])
@example(length=30, chunk_size=100, num_overlap=2.0, batch_size=1, part=(7, 3), places=[])
def test_the_samples_of_a_part_are_those_of_the_whole_song(
    length: int, chunk_size: int, num_overlap: float, batch_size: int, part: tuple[int, int], places: list[int]
) -> None:
    mixture = noise(2, length)
    keywords: Any = {"chunk_size": chunk_size, "num_overlap": num_overlap, "batch_size": batch_size}
    start, duration = part[0] % length, part[1]
    expected = separate(nonlinear, mixture, **keywords)[..., start : start + duration]
    by_end = separate(nonlinear, mixture, start=start, end=start + duration, **keywords)
    torch.testing.assert_close(by_end, expected, rtol=0, atol=1e-5)
    blocks = separate_stream(nonlinear, cut(mixture, places), start=start, duration=duration, **keywords)
    torch.testing.assert_close(torch.cat(list(blocks), dim=-1), expected, rtol=0, atol=1e-5)


def test_of_a_part_the_model_sees_only_the_chunks_that_reach_into_it() -> None:
    model, seen = Recorder(), []
    separate(
        model,
        torch.arange(20000.0),
        chunk_size=CHUNK,
        start=5100,
        end=6400,
        batch_size=3,
        progress=lambda *counts: seen.append(counts),
    )
    assert [int(chunk[0, 0]) for chunk in model.chunks] == [4500, 5000, 5500, 6000]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_stream_is_read_until_its_part_is_known_and_held_from_where_it_begins() -> None:
    blocks = Counted(1000)
    stems = list(separate_stream(identity, blocks, chunk_size=CHUNK, start=50000, duration=2000))
    assert sum(block.shape[-1] for block in stems) == 2000
    assert blocks.read <= 52000 + 3 * CHUNK
    assert blocks.most <= 4 * CHUNK


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"start": -1}, ValueError, "`start` must be from 0 to .*: received -1"),
        ({"start": 1.5}, TypeError, "`start` must be an integer: received 1.5"),
        ({"start": True}, TypeError, "`start` must be an integer: received True"),
        ({"end": 0}, ValueError, "`end` must be from 1 to .*: received 0"),
        ({"duration": 0}, ValueError, "`duration` must be from 1 to .*: received 0"),
        ({"start": 5, "end": 5}, ValueError, "`end` must be greater than `start`: received 5 and 5"),
        ({"end": 5, "duration": 5}, ValueError, "`end` and `duration` exclude each other: received 5 and 5"),
        ({"start": 9}, ValueError, "`start` must be before the end of the song, 9 samples: received 9"),
    ],
)
def test_parts_that_cannot_be_are_refused_before_the_model_runs(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = Recorder()
    with pytest.raises(error, match=message):
        separate(model, torch.zeros(2, 9), **keywords)
    with pytest.raises(error, match=message):
        list(separate_stream(model, [torch.zeros(2, 4), torch.zeros(2, 5)], **keywords))
    assert model.batches == []


# Shifts, and the chunks of other programs -----------------------------------------------------------------------------


def as_msst_does(
    model: Callable[[Tensor], Tensor], mixture: Tensor, chunk_size: int, num_overlap: float, batch_size: int
) -> Tensor:
    """Separate as MSST's `demix` does, chunk by chunk and sample by sample."""
    step, fade = step_of(chunk_size, num_overlap), chunk_size // 10
    song, border = between_mirror_images(mixture, chunk_size - step)
    starts = range(0, song.shape[-1], step)
    windows = []
    for number in range(len(starts)):
        together = [other for other in range(len(starts)) if other // batch_size == number // batch_size]
        rises, falls = together != [0], together == [0] or together[-1] < len(starts) - 1
        windows.append(trapezium(chunk_size, fade if rises else 0, fade if falls else 0))
    stems = by_chunks(model, song, chunk_size, starts, windows, least_mirrored=chunk_size // 2 + 1)
    return stems[..., border : border + mixture.shape[-1]].float()


def as_pymss_does(
    model: Callable[[Tensor], Tensor], mixture: Tensor, chunk_size: int, num_overlap: float, _batch_size: int
) -> Tensor:
    """Separate as `demix_track` of pymss 2.1.12 does, chunk by chunk and sample by sample."""
    step = step_of(chunk_size, num_overlap)
    fade = min(chunk_size // 10, chunk_size - step)
    song, border = between_mirror_images(mixture, chunk_size - step)
    length = song.shape[-1]
    windows = []
    for start in range(0, length, step):
        window = trapezium(chunk_size, fade if start else 0, fade)
        if start + chunk_size >= length:
            for sample in range(max(0, length - start - fade), length - start):
                window[sample] = 1.0
        windows.append(window)
    starts = range(0, length, step)
    stems = by_chunks(model, song, chunk_size, starts, windows, least_mirrored=chunk_size // 2 + 2)
    return stems[..., border : border + mixture.shape[-1]].float()


def as_audio_separator_does(
    model: Callable[[Tensor], Tensor], mixture: Tensor, chunk_size: int, num_overlap: float, _batch_size: int
) -> Tensor:
    """Separate as `MDXCSeparator.demix` of audio-separator 0.47.1 does, chunk by chunk and sample by sample."""
    length, step = mixture.shape[-1], step_of(chunk_size, num_overlap)
    if length < chunk_size:
        return model(mixture[None])[0]
    starts = [*range(0, length - chunk_size, step), length - chunk_size]
    angles = [2 * math.pi * sample / (chunk_size - 1) for sample in range(chunk_size)]
    windows = [[0.54 - 0.46 * math.cos(angle) for angle in angles]] * len(starts)
    return by_chunks(model, mixture, chunk_size, starts, windows).float()


def step_of(chunk_size: int, num_overlap: float) -> int:
    """Return the samples from one chunk to the next, 100 of 110 / 1.1, which is less than that in binary numbers."""
    return math.floor(chunk_size / Fraction(num_overlap).limit_denominator(10**6))


def between_mirror_images(mixture: Tensor, border: int) -> tuple[Tensor, int]:
    """Return a song with borders, and how long one is: zero for a song that is no longer than two of them."""
    length = mixture.shape[-1]
    border = border if length > 2 * border else 0
    return mixture[:, [*range(border, 0, -1), *range(length), *range(length - 2, length - 2 - border, -1)]], border


def trapezium(size: int, rise: int, fall: int) -> list[float]:
    """Return a window that rises from zero and falls to zero in straight lines."""
    window = [1.0] * size
    for sample in range(rise):
        window[sample] = sample / (rise - 1) if rise > 1 else 0.0
    for sample in range(fall):
        window[size - fall + sample] = 1 - sample / (fall - 1) if fall > 1 else 1.0
    return window


def by_chunks(
    model: Callable[[Tensor], Tensor],
    song: Tensor,
    chunk_size: int,
    starts: Sequence[int],
    windows: Sequence[Sequence[float]],
    least_mirrored: int = 0,
) -> Tensor:
    """Return the weighted mean of the estimates of chunks; those of at least so many samples are mirrored."""
    length = song.shape[-1]
    total, weights = torch.zeros(()), torch.zeros(length, dtype=torch.float64)
    for start, window in zip(starts, windows, strict=True):
        music = song[:, start : start + chunk_size]
        there = music.shape[-1]
        missing = chunk_size - there
        tail = torch.zeros(len(song), missing)
        if there >= least_mirrored:
            tail = music[:, [there - 2 - sample for sample in range(missing)]]
        estimate = model(torch.cat([music, tail], dim=-1)[None])[0].double() * torch.tensor(window, dtype=torch.float64)
        total = total + torch.nn.functional.pad(estimate, (start, length))[..., :length]
        weights[start : start + there] += torch.tensor(window, dtype=torch.float64)[:there]
    return (total / weights).nan_to_num(nan=0.0)


OTHER_PROGRAMS = {"msst": as_msst_does, "pymss": as_pymss_does, "audio-separator": as_audio_separator_does}


CHUNKS = {
    "chunk_size": st.integers(20, 120),
    "num_overlap": st.integers(1, 5) | st.floats(1, 4),
    "batch_size": st.integers(1, 5),
    "length": st.integers(1, 400),
}


@pytest.mark.parametrize("blend", OTHER_PROGRAMS)
@settings(max_examples=40)
@given(**CHUNKS)
@example(chunk_size=100, num_overlap=1, batch_size=2, length=250)
@example(chunk_size=100, num_overlap=1.1, batch_size=1, length=205)
@example(chunk_size=100, num_overlap=2, batch_size=1, length=50)
@example(chunk_size=100, num_overlap=2, batch_size=1, length=51)
@example(chunk_size=100, num_overlap=2, batch_size=1, length=52)
@example(chunk_size=100, num_overlap=2, batch_size=1, length=101)
@example(chunk_size=100, num_overlap=4, batch_size=3, length=150)
def test_the_blend_of_another_program_is_its_function_for_any_length_overlap_and_batch(
    blend: str, chunk_size: int, num_overlap: float, batch_size: int, length: int
) -> None:
    mixture = noise(2, length)
    expected = OTHER_PROGRAMS[blend](nonlinear, mixture, chunk_size, num_overlap, batch_size)
    keywords: Any = {"chunk_size": chunk_size, "num_overlap": num_overlap, "batch_size": batch_size, "blend": blend}
    stems = separate(nonlinear, mixture, **keywords)
    assert (stems - expected).abs().max() <= 1e-6 * expected.abs().max()
    blocks = separate_stream(nonlinear, cut(mixture, [length // 3, length // 2]), **keywords)
    torch.testing.assert_close(torch.cat(list(blocks), dim=-1), stems, rtol=0, atol=1e-6)


@given(chunk_size=st.integers(1, 10**6), data=st.data())
def test_any_overlap_in_samples_has_a_number(chunk_size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, chunk_size - 1))
    parameters = ParametersSeparation(chunk_size=chunk_size, num_overlap=chunk_size / (chunk_size - overlap))
    assert Chunks(parameters, torch.float32, torch.device("cpu")).step == chunk_size - overlap


@settings(max_examples=25)
@given(**CHUNKS, shifts=st.integers(2, 4), blend=st.sampled_from(BLENDS), start=st.integers(0, 499))
@example(chunk_size=100, num_overlap=2, batch_size=1, length=3, shifts=5, blend="smooth", start=1)
def test_shifts_are_the_mean_of_songs_whose_end_is_put_before_their_beginning(
    chunk_size: int, num_overlap: float, batch_size: int, length: int, shifts: int, blend: str, start: int
) -> None:
    mixture = noise(2, length)
    keywords: Any = {"chunk_size": chunk_size, "num_overlap": num_overlap, "batch_size": batch_size, "blend": blend}
    expected = torch.zeros(())
    for number in range(shifts):
        shift = number * (length // shifts)
        stems = separate(
            nonlinear, torch.cat([mixture[:, length - shift :], mixture[:, : length - shift]], -1), **keywords
        )
        expected = expected + torch.cat([stems[..., shift:], stems[..., :shift]], dim=-1) / shifts
    tolerance: Any = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(separate(nonlinear, mixture, shifts=shifts, **keywords), expected, **tolerance)
    start %= length
    part = separate_stream(nonlinear, cut(mixture, [length // 2]), shifts=shifts, start=start, duration=99, **keywords)
    torch.testing.assert_close(torch.cat(list(part), dim=-1), expected[..., start : start + 99], **tolerance)


@pytest.mark.parametrize(
    "keywords",
    [{"shifts": 3}, *[{"blend": blend} for blend in OTHER_PROGRAMS], {"blend": "msst", "shifts": 3, "start": 700}],
)
def test_progress_counts_the_chunks_of_all_shifts_and_borders(keywords: dict[str, Any]) -> None:
    model, seen = Recorder(), []
    separate(model, noise(1, 4321), chunk_size=CHUNK, progress=lambda *counts: seen.append(counts), **keywords)
    assert seen == [(done, len(model.chunks)) for done in range(1, len(model.chunks) + 1)]


@pytest.mark.parametrize("blend", OTHER_PROGRAMS)
def test_the_blend_of_another_program_streams_holding_a_few_chunks(blend: Blend) -> None:
    given = done = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal given
        for _block in range(100):
            given += 100
            yield noise(1, 100)

    for stems in separate_stream(identity, blocks(), chunk_size=CHUNK, batch_size=2, blend=blend):
        done += stems.shape[-1]
        assert given <= done + 4.5 * CHUNK
    assert done == 10000


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"shifts": 0}, ValueError, "`shifts` must be from 1 to .*: received 0"),
        ({"shifts": "2"}, TypeError, "`shifts` must be an integer: received '2'"),
        ({"blend": "MSST"}, ValueError, "`blend` must be one of smooth, msst, pymss, audio-separator: received 'MSST'"),
    ],
)
def test_shifts_and_blends_that_do_not_exist_are_refused(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        separate(identity, noise(1, 10), **keywords)
