"""Ensembles: NumPy's functions and transforms written out say what comes out, wherever blocks end."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.ensemble import ENSEMBLES, Ensemble, combine, combine_streams, separate_ensemble_stream
from hunterFormsBS.overlapAdd import branches
from hunterFormsBS.separation import separate

WEIGHTS = [1.0, 2.5, 0.5, 3.0]


def estimates(count: int, length: int) -> list[Tensor]:
    """Return stems of several models, (2 stems, 2 channels, length)."""
    return list(torch.rand((count, 2, 2, length), generator=torch.Generator().manual_seed(1)) * 2 - 1)


def of_smallest_key(values: np.ndarray, key: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.take_along_axis(values, key(values).argmin(axis=0)[None], axis=0)[0]


def folded(values: np.ndarray, counts: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Combine as UVR does: each model's value replaces those before it where its modulus counts."""
    result = values[0]
    for value in values[1:]:
        result = np.where(counts(np.abs(value), np.abs(result)), value, result)
    return result


RULES: dict[str, Callable[[np.ndarray, Sequence[float] | None], np.ndarray]] = {
    "avg": lambda values, weights: np.average(values, axis=0, weights=weights),
    "median": lambda values, _: np.median(values, axis=0),
    "min": lambda values, _: of_smallest_key(values, np.abs),
    "max": lambda values, _: of_smallest_key(values, lambda x: -np.abs(x)),
    "uvr_min": lambda values, _: folded(values, np.less_equal),
    "uvr_max": lambda values, _: folded(values, np.greater_equal),
}


def expected(tensors: list[Tensor], kind: str, weights: Sequence[float] | None) -> Tensor:
    """Combine by NumPy: samples, or spectra of audio that is continued to a multiple of the hop."""
    rule, _, domain = kind.rpartition("_")
    values = np.stack([tensor.numpy() for tensor in tensors]).astype(np.float64)
    if domain == "wave":
        return torch.from_numpy(RULES[rule](values, weights))
    n_fft, hop, length = 2048, 1024, values.shape[-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(values, [(0, 0)] * 3 + [(hop, hop + -length % hop)])
    starts = range(0, padded.shape[-1] - n_fft + 1, hop)
    frames = np.stack([padded[..., start : start + n_fft] * window for start in starts])
    combined = np.fft.irfft(RULES[rule](np.fft.rfft(frames).swapaxes(0, 1), weights))
    audio, weight = np.zeros(padded.shape[1:]), np.zeros(padded.shape[-1])
    for start, frame in zip(starts, combined, strict=True):
        audio[..., start : start + n_fft] += frame * window
        weight[start : start + n_fft] += window**2
    return torch.from_numpy((audio / weight.clip(1e-12))[..., hop : hop + length])


@pytest.mark.parametrize("kind", ENSEMBLES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [2048, 5000])
def test_each_kind_is_what_numpy_says(kind: Ensemble, count: int, length: int) -> None:
    tensors = [tensor.double() for tensor in estimates(count, length)]
    result = combine(tensors, kind)
    torch.testing.assert_close(result, expected(tensors, kind, None), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in ENSEMBLES if "min" in kind or "max" in kind])
def test_of_equal_moduli_msst_takes_the_first_and_uvr_the_last(kind: Ensemble) -> None:
    (one,) = estimates(1, 5000)
    for first, last in ((one, -one), (-one, one)):
        torch.testing.assert_close(
            combine([first, last], kind), last if kind.startswith("uvr") else first, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("kind", ["avg_wave", "avg_fft"])
def test_weights_are_in_any_unit(kind: Ensemble) -> None:
    tensors = estimates(4, 3000)
    result = combine(tensors, kind, WEIGHTS)
    torch.testing.assert_close(result.double(), expected(tensors, kind, WEIGHTS), rtol=0, atol=2e-6)
    torch.testing.assert_close(combine(tensors, kind, [10 * weight for weight in WEIGHTS]), result)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(ENSEMBLES),
    length=st.integers(1, 6000),
    sizes=st.lists(st.integers(1, 3000), min_size=3, max_size=3),
)
@example(kind="max_fft", length=1, sizes=[1, 1, 1])
@example(kind="median_fft", length=2047, sizes=[1023, 1, 1025])
@example(kind="min_fft", length=2048, sizes=[1024, 1024, 2048])
def test_where_blocks_end_does_not_show(kind: Ensemble, length: int, sizes: list[int]) -> None:
    tensors = [tensor[:1, :1] for tensor in estimates(3, length)]
    streams = [tensor.split(max(size, length // 40), dim=-1) for tensor, size in zip(tensors, sizes, strict=True)]
    joined = torch.cat(list(combine_streams(streams, kind)), dim=-1)
    assert joined.shape == (1, 1, length)
    torch.testing.assert_close(joined, combine(tensors, kind), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_of_equal_estimates_comes_the_estimate(kind: Ensemble) -> None:
    for length in (1, 1023, 1024, 2047, 300_000):
        (one,) = estimates(1, length)
        torch.testing.assert_close(combine([one] * 3, kind), one, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_streams_are_read_only_as_far_as_blocks_need(kind: Ensemble) -> None:
    read = [0, 0]

    def stream(number: int, size: int) -> Iterator[Tensor]:
        while True:
            read[number] += size
            yield torch.ones(1, 1, size)

    done = 0
    stems = combine_streams([stream(0, 700), stream(1, 3000)], kind)
    for _ in range(100):
        done += next(stems).shape[-1]
        assert max(read) - done <= 3000 + 2048
    stems.close()


@pytest.mark.parametrize("kind", ["avg_wave", "max_fft"])
def test_models_read_one_stream_together(kind: Ensemble) -> None:
    models: list[Callable[[Tensor], Tensor]] = [lambda x: x[:, None] * 0.5, lambda x: (x * x)[:, None]]
    (song,) = estimates(1, 4321)
    song = song[0]
    reads = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal reads
        buffer = torch.empty(2, 100)
        for piece in song.split(100, dim=-1):
            reads += 1
            buffer[:, : piece.shape[-1]] = piece
            yield buffer[:, : piece.shape[-1]]

    stems = torch.cat(list(separate_ensemble_stream(models, blocks(), kind=kind, chunk_size=1000)), dim=-1)
    assert reads == 44
    whole = combine([separate(model, song, chunk_size=1000) for model in models], kind)
    torch.testing.assert_close(stems, whole, rtol=0, atol=1e-6)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: combine([], "avg_wave"), "at least one"),
    (lambda: combine(estimates(2, 9), "mean"), "one of avg_wave, .*uvr_max_spec: received 'mean'"),  # type: ignore[arg-type]
    (lambda: combine(estimates(2, 9), "avg_wave", [1.0]), r"each of 2: received \[1\.0\]"),
    (lambda: combine(estimates(2, 9), "avg_fft", [1.0, math.nan]), r"finite.*nan"),
    (lambda: combine(estimates(2, 9), "avg_fft", [1.0, -1.0]), r"above zero.*-1\.0"),
    (lambda: combine(estimates(2, 9), "max_fft", [1.0, 2.0]), r"for avg_wave and avg_fft: received \[1\.0, 2\.0\]"),
    (lambda: combine([torch.zeros(1, 9), torch.zeros(1, 8)]), r"one shape.*\(1, 8\), \(1, 9\)"),
    (lambda: combine([torch.zeros(1, 0)]), r"empty axis: received \[\(1, 0\)\]"),
    (lambda: list(combine_streams([[torch.zeros(1, 9)], [torch.zeros(1, 8)]])), r"equally long.*\[9, 8\]"),
    (lambda: list(combine_streams([[torch.zeros(1, 9)], [torch.zeros(2, 9)]])), r"same stems.*\(1,\), \(2,\)"),
]


def test_one_tensor_is_not_taken_for_blocks() -> None:
    with pytest.raises(TypeError, match="Pass it in a list"):
        list(separate_ensemble_stream([lambda audio: audio[:, None]], torch.zeros(2, 5)))


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_cannot_be_combined_is_refused_with_what_was_received(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@given(st.lists(st.integers(0, 2), max_size=40))
def test_branches_give_all_items_and_hold_those_that_a_reader_still_needs(order: list[int]) -> None:
    class Item:
        pass

    made: list[weakref.ref[Item]] = []

    def make() -> Item:
        item = Item()
        made.append(weakref.ref(item))
        return item

    readers = branches((make() for _number in range(10)), 3)
    taken: list[list[int]] = [[], [], []]
    for reader in order:
        item = next(readers[reader], None)
        if item is not None:
            taken[reader].append([each() for each in made].index(item))
        del item
        needed = set(range(min(map(len, taken)), max(map(len, taken))))
        assert {number for number, each in enumerate(made) if each() is not None} <= needed
    assert all(each == list(range(len(each))) for each in taken)
