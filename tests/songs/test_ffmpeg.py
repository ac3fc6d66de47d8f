"""Files that libsndfile does not read: encoded in the test, and decoded by FFmpeg through PyAV."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.songs import ffmpeg
from hunterFormsBS.songs.reading import probe_audio, read_audio

RATE = 48000


def tone(seconds: float = 2.0) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.25 * np.sin(2 * np.pi * 1000 * t)]).astype("float32")


def encode(path: Path, codec: str, audio: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="stereo" if len(audio) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), "fltp", stream.layout)
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "allowed"),
    [
        ("a.m4a", "aac", 0.05),
        ("a.mp4", "aac", 0.05),
        ("a.m4a", "alac", 1e-3),
        ("a.mkv", "ac3", 0.05),
        ("a.webm", "libopus", 0.1),
        ("a.wv", "wavpack", 0.01),
    ],
)
def test_what_was_encoded_is_read(name: str, codec: str, allowed: float, tmp_path: Path) -> None:
    expected = tone()
    path = encode(tmp_path / name, codec, expected)
    properties = probe_audio(path)
    assert (properties.sample_rate, properties.channels) == (RATE, 2)
    audio, rate = read_audio(path)
    assert rate == RATE
    # Encoders add a little at the beginning and the end.
    assert abs(audio.shape[-1] - expected.shape[-1]) < 6000
    assert abs(properties.length - audio.shape[-1]) < 6000
    spectra = [np.abs(np.fft.rfft(each[:, 20000:60000], axis=-1)) for each in (audio.numpy(), expected)]
    assert np.abs(spectra[0] - spectra[1]).max() < allowed * spectra[1].max()
    assert [int(each.argmax()) for each in spectra[0]] == [int(each.argmax()) for each in spectra[1]]


def test_channels_are_not_exchanged_and_blocks_are_of_the_size_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", "alac", tone())
    blocks = list(probe_audio(path).blocks(10000))
    assert all(10000 <= block.shape[-1] < 16000 for block in blocks[:-1])
    torch.testing.assert_close(
        torch.cat(blocks, dim=-1)[:, :90000], torch.from_numpy(tone())[:, :90000], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("content", [b"Dear diary", b"", bytes(range(256)) * 40])
def test_what_is_no_audio_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not audio|is empty") as caught:
        probe_audio(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_absurd_sample_rates_are_refused_with_the_value(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), rate)
    with pytest.raises(ValueError, match=f"says that it has {rate} samples a second, and audio has 1000 to 768000"):
        probe_audio(tmp_path / "a.wav")


def test_a_file_that_ends_before_its_header_says_is_warned_about_with_both_durations(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wv", "wavpack", np.tile(tone(), 5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"ends after \d\.\d\d s, and its header says (10|9)\.\d\d s: was it copied"):
        read_audio(path)


def test_surround_is_mixed_down_when_asked_and_refused_with_the_remedy_otherwise(tmp_path: Path) -> None:
    channels = np.zeros((RATE, 6))
    channels[:, 2] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)  # the centre, which goes to both sides
    path = tmp_path / "surround.wav"
    soundfile.write(path, channels, RATE, format="WAVEX")
    with pytest.raises(ValueError, match=r"has 6 channels, .* with --downmix"):
        probe_audio(path)
    audio = probe_audio(path, downmix=True)
    assert (audio.channels, audio.length) == (2, RATE)
    mixed = torch.cat(list(audio.blocks()), dim=-1)
    assert mixed.shape == (2, RATE)
    torch.testing.assert_close(mixed[0], mixed[1])
    expected = torch.as_tensor(channels[:, 2]) * 0.5**0.5  # ITU-R BS.775: the centre at -3 dB on both sides
    torch.testing.assert_close(mixed[0].double(), expected, rtol=0, atol=1e-3)


def test_stereo_is_not_changed_by_mixing_down(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone().T, RATE, subtype="FLOAT")
    audio = probe_audio(tmp_path / "a.wav", downmix=True)
    assert torch.equal(torch.cat(list(audio.blocks()), dim=-1), torch.from_numpy(tone()))


def several_streams(path: Path) -> Path:
    """Write a file with two audio streams, as .stem.mp4 and films have them: of 440 and of 1000 Hz."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        for stream, samples in zip(streams, tone(), strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.mark.parametrize("name", ["a.stem.mp4", "film.mkv"])
def test_the_audio_stream_asked_for_is_read(name: str, tmp_path: Path) -> None:
    path = several_streams(tmp_path / name)
    for number, frequency in ((None, 440), (1, 440), (2, 1000)):
        audio = torch.cat(list(probe_audio(path, stream=number).blocks()), dim=-1)
        assert int(torch.fft.rfft(audio[0, 10000 : 10000 + RATE]).abs().argmax()) == frequency
    with pytest.raises(ValueError, match=r"has 2 audio stream\(s\): --audio-stream 3 is none of them"):
        probe_audio(path, stream=3)


REFERRING = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {secret}\n",
    "dash": """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"
 mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="audio/wav" contentType="audio"><Representation id="1"
 bandwidth="1"><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>""",
    "imf": """<?xml version="1.0"?>
<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>urn:uuid:1</Id></CompositionPlaylist>""",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 40000 RTP/AVP 0\n",
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
    "webm_dash_manifest": None,
    **dict.fromkeys(("image2", "rtp", "rtsp", "sap", "lavfi", "libcdio", "bluray", "avisynth", "vapoursynth")),
}
"""What FFmpeg reads that leads to other files, devices or the network, and how its content begins, if that tells it."""


@pytest.mark.parametrize("name", REFERRING)
def test_what_leads_to_other_files_is_no_format_that_is_read(name: str) -> None:
    assert name not in ffmpeg.FORMATS.split(",")


def test_all_formats_that_are_read_exist_under_these_names() -> None:
    known = {name for each in av.formats_available for name in each.split(",")}
    assert set(ffmpeg.FORMATS.split(",")) <= known


@pytest.mark.parametrize("wall", ["formats", "protocols"])
@pytest.mark.parametrize("name", [name for name, content in REFERRING.items() if content])
def test_what_leads_to_other_files_or_the_network_is_refused_by_each_wall_alone(
    name: str, wall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, tone().T, RATE)
    path = tmp_path / "song.wav"
    for address in ("secret.wav", str(secret), secret.as_uri()):
        path.write_text(str(REFERRING[name]).format(secret=address))
        options = dict(ffmpeg.OPTIONS)
        if wall == "formats":
            options["protocol_whitelist"] = "file,crypto,data"
        else:
            options.update(format_whitelist=name, safe="0", allowed_extensions="ALL", strict="experimental")
        monkeypatch.setattr(ffmpeg, "OPTIONS", options)
        with pytest.raises(ValueError, match="is not audio"):
            read_audio(path)


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
@pytest.mark.parametrize(("suffix", "codec"), [(b".wav", None), (b".flac", None), (b".m4a", "aac")])
def test_names_that_are_not_utf_8_are_read(suffix: bytes, codec: str | None, tmp_path: Path) -> None:
    plain = tmp_path / f"a{suffix.decode()}"
    if codec is None:
        soundfile.write(plain, tone().T, RATE)
    else:
        encode(plain, codec, tone())
    path = tmp_path / os.fsdecode(b"bad\xff" + suffix)
    plain.rename(path)
    audio, rate = read_audio(path)
    assert rate == RATE
    assert audio.shape[-1] == pytest.approx(2 * RATE, abs=3000)
