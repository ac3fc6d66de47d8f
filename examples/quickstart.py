"""Train a small separator on one song until it separates that song well, and measure, draw and save the result.

    python examples/quickstart.py

This shows that everything works: decoding, training, separation, checkpoint. The model is scored on the song that it
was trained on, six seconds of music from the package stempeg, so the scores say nothing about other songs.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.plot import plot_separation
from hunterFormsBS.separation import separate

SAMPLE_RATE = 44100
STEMS = ("drums", "bass", "other", "vocals")
SEGMENT = 131072  # samples per chunk, in training and in separation
NUM_OVERLAP = 4
LEARNING_RATE = 3e-3
GOAL = 10.0  # mean SDR in dB at which stems are worth hearing
MINUTES = 6.0  # the longest training
MEASURE_EVERY = 20  # steps
# Bins in each band, of 10.8 Hz: narrow bands at low frequencies, wide ones at high frequencies.
FREQS_PER_BANDS = (*(4,) * 10, 8, 16, 16, 24, 32, 40, 56, 72, 96, 128, 160, 208, 272, 368, 513)


def find_song() -> Path:
    """Return the path of the song in stempeg."""
    package = find_spec("stempeg")  # not imported, which would need the program ffmpeg: only the file is used
    if package is None or package.origin is None:
        raise SystemExit('The song is in the package stempeg: python -m pip install -e ".[examples]"')
    return next(Path(package.origin).parent.glob("data/*.stem.mp4"))


def decode(pathFilename: Path) -> tuple[Tensor, Tensor]:
    """Read a file of five audio streams: the mixture, `(s, t)`, and its stems, `(n, s, t)`."""
    import av

    with av.open(str(pathFilename)) as container:
        streams = container.streams.audio
        frames: dict[int, list[Tensor]] = {stream.index: [] for stream in streams}
        for packet in container.demux(*streams):
            for frame in packet.decode():
                frames[packet.stream.index].append(torch.from_numpy(frame.to_ndarray()))
    mixture, *stems = (torch.cat(parts, dim=-1) for parts in frames.values())
    return mixture, torch.stack(stems)


def build_model() -> BandSplitRotator:
    """Return a model that two CPU cores can train: few bands, few frames a second, few features."""
    return BandSplitRotator(
        48,
        depth=2,
        time_transformer_depth=1,
        freq_transformer_depth=1,
        heads=4,
        dim_head=16,
        ff_mult=2,
        mlp_expansion_factor=1,
        freqs_per_bands=FREQS_PER_BANDS,
        dim_freqs_in=2049,
        stft_n_fft=4096,
        stft_win_length=4096,
        stft_hop_length=2048,
        num_stems=len(STEMS),
        stereo=True,
    )


def signal_to_distortion(stems: Tensor, estimates: Tensor) -> Tensor:
    """Return the SDR of each stem, `(n)`, in dB: its energy over that of the error. Silence scores 0 dB."""
    energy, error = (audio.square().sum((-2, -1)) for audio in (stems, stems - estimates))
    return 10 * torch.log10(energy / error)


def mean_score(model: BandSplitRotator, mixture: Tensor, stems: Tensor) -> float:
    """Return the mean SDR of the stems in dB, from chunks that do not overlap; at most the work of three steps."""
    model.eval()
    estimates = separate(model, mixture, chunk_size=SEGMENT, num_overlap=1, batch_size=1)
    model.train()
    return signal_to_distortion(stems, estimates).mean().item()


def train(
    model: BandSplitRotator, mixture: Tensor, stems: Tensor, seconds: float, steps: int | None = None, seed: int = 0
) -> None:
    """Train on random segments of one song until the score is `GOAL`, or the time is up.

    The score is computed now and then. If a number of steps is given, neither score nor time matters.

    The loss is the logarithm of each stem's mean squared error, so that a quiet stem counts as much as a loud one.
    `model(mixture, target=stems)` is the loss for serious training.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    last_start = mixture.shape[-1] - SEGMENT
    model.train()
    begin = time.monotonic()
    done = score = 0.0
    count = 0
    bar_format = "{l_bar}{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc="training", bar_format=bar_format, mininterval=0.5) as bar:
        while done < 1:
            # Warm up for 20 steps, then fall to zero along a cosine.
            rate = min((count + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
            # Offsets beyond an end are clamped to it; otherwise random segments would seldom reach the ends.
            start = int(torch.randint(-SEGMENT // 4, last_start + SEGMENT // 4, (), generator=generator))
            start = min(max(start, 0), last_start)
            segment = slice(start, start + SEGMENT)
            error = model(mixture[None, :, segment]) - stems[None, ..., segment]  # (b, n, s, t)
            loss = error.square().mean((0, 2, 3)).add(1e-8).log10().mean() * 10
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

            count += 1
            before, done = done, count / steps if steps else (time.monotonic() - begin) / seconds
            if not steps and count % MEASURE_EVERY == 0:
                score = mean_score(model, mixture, stems)
                done = 1.0 if score >= GOAL else done
            bar.set_postfix_str(f"step {count}, loss {loss.item():.1f} dB, SDR {score:.1f} dB", refresh=False)
            bar.update(min(1.0, done) - before)
    model.eval()


def report(mixture: Tensor, stems: Tensor, estimates: Tensor) -> str:
    """Return a table of the scores of the estimates, of silence and of the mixture."""
    scores = signal_to_distortion(stems, estimates)
    untouched = signal_to_distortion(stems, mixture.expand_as(stems))
    lines = ["SDR in dB    silence  mixture  estimate  |    peak      RMS       DC"]
    for name, plain, score, estimate in zip(STEMS, untouched, scores, estimates, strict=True):
        levels = f"{estimate.abs().max():8.3f} {estimate.square().mean().sqrt():8.4f} {estimate.mean():8.5f}"
        lines.append(f"{name:12} {0:7.2f} {plain:8.2f} {score:9.2f}  |{levels}")
    return "\n".join([*lines, f"{'mean':12} {0:7.2f} {untouched.mean():8.2f} {scores.mean():9.2f}  |"])


def interpreter() -> str:
    """Return the shell command of the running Python."""
    found = shutil.which("python")
    if found is not None and Path(found).absolute() == Path(sys.executable).absolute():
        return "python"
    return os.path.relpath(sys.executable)


def main() -> None:
    """Train, separate, score, draw and save."""
    reader = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    reader.add_argument("--minutes", type=float, default=MINUTES, help=f"to train at most (default: {MINUTES:g})")
    reader.add_argument("--steps", type=int, help="train that many steps instead, for the same result every time")
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU cores (default: 2)")
    reader.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for the results")
    options = reader.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)

    song = find_song()
    mixture, stems = decode(song)
    model = build_model()
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{song.name}: {mixture.shape[-1] / SAMPLE_RATE:.1f} s; a model of {size:.1f} million parameters")
    train(model, mixture, stems, 60 * options.minutes, options.steps, options.seed)

    inference = {"chunk_size": SEGMENT, "num_overlap": NUM_OVERLAP, "batch_size": 1}
    sections = {
        "audio": {"sample_rate": SAMPLE_RATE, "num_channels": 2, "chunk_size": SEGMENT},
        "training": {"instruments": list(STEMS), "target_instrument": None},
        "inference": inference,
    }
    checkpoint = options.output / "quickstart.ckpt"
    save_checkpoint(checkpoint, model, configuration=sections)
    estimates = separate(model, mixture, **inference)
    print(report(mixture, stems, estimates))
    print("This is the song that the model was trained on: a demonstration, which says nothing about other songs.")

    for name, audio in [("mixture", mixture), *zip(STEMS, estimates, strict=True)]:
        soundfile.write(options.output / f"{name}.wav", audio.T.numpy(), SAMPLE_RATE, subtype="FLOAT")
    figure = Figure(figsize=(17, 7), layout="constrained")
    plot_separation(mixture, estimates, truth=stems, names=STEMS, sample_rate=SAMPLE_RATE, figure=figure)
    figure.savefig(options.output / "spectrograms.png", dpi=100)
    print(f"Stems and spectrograms.png are in {options.output}. The same stems from the command line:")
    command = f"-m hunterFormsBS {options.output}/mixture.wav --checkpoint {checkpoint} --output {options.output}"
    print(f"{interpreter()} {command}")


if __name__ == "__main__":
    from endings import run

    run(main)
