"""A page about a run, in one file without scripts: how it ended, its curves, scores, settings, sounds and files."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hunterFormsBS.training.bounds import Stated, stated_fields
from hunterFormsBS.training.history import curves, read_history
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.states import appearing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[list[int], list[float]]]

STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; background: white }
"""


def write_report(
    folder: Path, settings: Settings, model: Mapping[str, Any], *, ending: str, updates: int, seconds: float
) -> Path:
    """Write `report.html` into the folder of a run, from what the run left there.

    Parameters
    ----------
    folder : Path
    settings : Settings
    model : mapping
        Constructor arguments of the model, as they were stated.
    ending : str
        How the run ended.
    updates : int
        Those that were made.
    seconds : float
        That the run took.

    Returns
    -------
    Path
        Of the page.
    """
    found = curves(read_history(folder / "history.jsonl"))
    sections = {
        "Run": _table((), _summary(found, settings, ending, updates, seconds)),
        "Curves": _image(_png(draw_curves(found, settings)), "Curves of the numbers in history.jsonl") if found else "",
        f"{settings.metric_for_best} of stems and songs": "".join(_scores(found, settings)),
        "Excerpt at the last validation": "".join(_excerpt(folder / "excerpt")),
        "Remarks on the songs": _list(_lines(folder / "check.txt")),
        "Settings that are not the defaults": _table(("setting", "value", "default"), changed_settings(settings)),
        "Model": _table(("argument", "value"), ((name, repr(value)) for name, value in model.items())),
        "Files": _table(("file", "MB"), _files(folder)),
    }
    title = escape(f"Training of {folder.resolve().name}")
    body = "".join(f"<h2>{escape(name)}</h2>\n{content}\n" for name, content in sections.items() if content)
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f'<meta name="viewport" content="width=device-width">\n<h1>{title}</h1>\n{body}</html>\n'
    )
    path = folder / "report.html"
    with appearing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def changed_settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and default of the settings that are not the defaults."""
    stated = stated_fields(Settings)
    for field in fields(settings):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(settings, field.name)
        if value != default:
            _, where = stated.get(field.name, (None, Stated("")))
            name = ".".join(part for part in (where.section, (where.names or (field.name,))[0]) if part)
            yield name, repr(value), "none: it has to be stated" if default is MISSING else repr(default)


def draw_curves(found: Curves, settings: Settings) -> Figure:
    """Draw the numbers of a run over its updates: a panel for each kind that there is."""
    from matplotlib.figure import Figure

    metrics = [f"{metric}/" for metric in settings.metrics]
    kinds = ["loss/", "gradient_norm", "learning_rate", *metrics, "speed/audio_per_second", "memory/peak_gb"]
    panels = {
        kind: [name for name in found if name == kind or (kind[-1] == "/" and name.startswith(kind))] for kind in kinds
    }
    panels = {kind: names for kind, names in panels.items() if names}
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    for number, (kind, names) in enumerate(panels.items(), 1):
        axes: Any = figure.add_subplot(rows, 2, number)  # Matplotlib's methods are typed in part
        for name in names:
            axes.plot(*found[name], label=name.removeprefix(kind) or name, marker="." if kind in metrics else "")
        axes.set_title(kind.rstrip("/"))
        axes.set_xlabel("updates")
        positive = all(value > 0 for name in names for value in found[name][1])
        axes.set_yscale("log" if positive and kind in ("loss/", "gradient_norm") else "linear")
        if len(names) > 1:
            axes.legend(fontsize="small")
    return figure


def _summary(found: Curves, settings: Settings, ending: str, updates: int, seconds: float) -> Iterator[tuple[str, str]]:
    yield "ended", ending
    yield "updates", f"{updates:,} of {settings.updates:,}"
    hours, rest = divmod(round(seconds), 3600)
    yield "duration", f"{hours} h {rest // 60:02} min {rest % 60:02} s"
    named = {
        "speed/updates_per_second": ("updates per second", "median"),
        "speed/audio_per_second": ("seconds of audio per second", "median"),
        "memory/peak_gb": ("memory, at most", "GB"),
        "skipped": ("updates left out because they were not finite", ""),
    }
    for name, (words, kind) in named.items():
        if name in found:
            values = sorted(found[name][1])
            value = values[len(values) // 2] if kind == "median" else values[-1]
            yield words, f"{value:,.4g}" + (f" {kind}" if kind == "GB" else "")
    best = _best(found, settings)
    if best is not None:
        yield f"best mean {settings.metric_for_best}", f"{best[1]:.2f}, after {best[0]:,} updates"


def _best(found: Curves, settings: Settings) -> tuple[int, float] | None:
    """Return the update of the best validation, and its score: the first of equal ones, as `best.ckpt` is."""
    scores = found.get(f"{settings.metric_for_best}/mean")
    return None if scores is None else max(zip(*scores, strict=True), key=lambda pair: pair[1])


def _scores(found: Curves, settings: Settings) -> Iterator[str]:
    """Yield the scores of the best validation: a line for each song, a column for each stem."""
    metric, best = settings.metric_for_best, _best(found, settings)
    if best is None:
        return
    at_best: dict[str, dict[str, float]] = {}
    for name, (updates, values) in found.items():
        kind, _, rest = name.partition("/")
        if kind == f"{metric}_by_song" and best[0] in updates:
            song, _, stem = rest.rpartition("/")
            at_best.setdefault(song, {})[stem] = values[updates.index(best[0])]
    means = {
        stem: dict(zip(*found[f"{metric}/{stem}"], strict=True))
        for stem in settings.stems
        if f"{metric}/{stem}" in found
    }
    at_best["mean"] = {stem: by_update[best[0]] for stem, by_update in means.items() if best[0] in by_update}
    yield f"<p>At the best validation, after {best[0]:,} updates.</p>"
    shown = ((song, *(row.get(stem) for stem in settings.stems)) for song, row in at_best.items())
    yield _table(("song", *settings.stems), shown)


def _excerpt(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.png")):
        yield _image(path.read_bytes(), path.stem)
    for path in sorted(folder.glob("*.flac")):
        sound = _inline(path.read_bytes(), path.name)
        yield f'<p>{escape(path.stem)}<br><audio controls src="{sound}"></audio></p>\n'


def _files(folder: Path) -> Iterator[tuple[str, float]]:
    for path in sorted(folder.iterdir()):
        inside = path.rglob("*") if path.is_dir() else [path]
        if path.name != "lock" and not path.name.endswith(".unfinished"):
            yield path.name, sum(each.stat().st_size for each in inside if each.is_file()) / 1e6


def _lines(pathFilename: Path) -> list[str]:
    return pathFilename.read_text(encoding="utf-8").splitlines() if pathFilename.exists() else []


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    heading = "<tr>" + "".join(f"<th>{escape(each)}</th>" for each in headings) + "</tr>\n" if headings else ""
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows)
    return f"<table>\n{heading}{lines}</table>" if lines else ""


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{"" if value is None else f"{value:.2f}"}</td>'


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")  # pyright: ignore[reportUnknownMemberType]
    return file.getvalue()


def _image(png: bytes, description: str) -> str:
    return f'<p><img alt="{escape(description)}" src="{_inline(png, "picture.png")}"></p>\n'


def _inline(content: bytes, name: str) -> str:
    kind = "audio/flac" if name.endswith(".flac") else "image/png"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
