"""Memory that the program frees and takes again, counted in page faults by the kernel, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hunterFormsBS.program import dispatch

BLOCKS = """
import resource
from hunterFormsBS.program.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (100 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
@pytest.mark.parametrize(
    ("own", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}, False)]
)
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(own: dict[str, str], keeps: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS], env=environment | own, capture_output=True, text=True, check=True
    )
    pages = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 10) == keeps


@pytest.mark.parametrize(("arguments", "keeps"), [(["models"], True), (["song.wav"], True), (["listen"], False)])
def test_only_a_page_that_waits_for_songs_gives_memory_back(
    arguments: list[str], keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(dispatch, "keep_standard_streams", lambda: None)
    monkeypatch.setattr(dispatch, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(dispatch, "main", lambda _: 0)
    monkeypatch.setattr(sys, "argv", ["hunterforms", *arguments])
    with pytest.raises(SystemExit):
        dispatch.run()
    assert bool(calls) == keeps
