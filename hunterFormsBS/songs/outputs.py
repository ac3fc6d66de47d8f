"""The outputs of each song: stems, the mixture without some of them, and the files that they get."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.printable import list_some
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.finding import Song
from hunterFormsBS.songs.graph import REST, Rest
from hunterFormsBS.songs.names import (
    OF_STEMS,
    TEMPLATE,
    TEMPLATE_TOGETHER,
    alike,
    check_apart,
    fields_of,
    fill_in,
    key_of,
    safe_name,
)
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.sharing import rank_in_job
from hunterFormsBS.songs.stemAtom import NUM_STEMS

__all__ = ["MIXTURE", "Outputs"]

MIXTURE = "mixture"
UNNAMED = ("stem",)
"""Stands for stems that only the model tells, so that songs can be told apart before it is loaded."""


class Outputs:
    """The stems of each song, and their files.

    Parameters
    ----------
    songs : Sequence[Song]
        All of them, whichever process separates them.
    model, model_type : str
        Names of the checkpoint and its kind for templates.

    Raises
    ------
    UsageError
        If the template does not fit the format or the model.
    """

    def __init__(
        self,
        options: Options,
        encoding: Encoding,
        songs: Sequence[Song],
        console: Console,
        *,
        model: str,
        model_type: str,
    ) -> None:
        self.names: list[str] = []
        """Of what is written of each song; empty while only the model tells how many stems there are."""
        self.rests: list[Rest] = []
        """The outputs after the stems; the mixture, which is named first, comes last."""
        self._options = options
        self._together = encoding.is_together
        self._console = console
        self._songs = songs
        self._renamed: dict[Path, str] = {}
        template = options.name_template
        self._template = TEMPLATE_TOGETHER if self._together and template == TEMPLATE else template
        self._has = fields_of(self._template)
        if self._together and self._has & {*OF_STEMS}:
            raise UsageError(
                f"--format {encoding.format} is one file for all stems of a song: leave {{stem}} and {{number}} out of "
                "--name-template"
            )
        if "model_type" in self._has and not model_type:
            raise UsageError("{model_type} in --name-template: no configuration tells it, pass --configuration")
        self._common: dict[str, str | int] = {
            "model": model,
            "model_type": model_type,
            "start_time": int(time.time()),
            "ext": encoding.format,
        }

    def name_stems(self, stems: Sequence[str]) -> bool:
        """Take the names of the stems, and tell whether they are others than before.

        Raises
        ------
        UsageError
            If two files would be one.
        """
        further = self._further(stems) if stems else {}
        mixture = [MIXTURE] if self._together and stems else []
        names = [*mixture, *stems, *further]
        for option in ("--residual", "--also-rest"):
            for name in [name for name, (given, _) in further.items() if given == option]:
                if key_of(name) in map(key_of, [*mixture, *stems]):
                    raise UsageError(
                        f"{option} {name} would overwrite the stem of this name: leave it out or rename it"
                    )
        if len(set(map(key_of, names))) < len(names):
            raise UsageError(
                f"two stems would be written as one of {', '.join(names)}: give the stems of the configuration "
                "different names, or ask for one of them with --stems"
            )
        if self._together and len(names) > 1 + NUM_STEMS:
            raise UsageError(
                f"--format stem.mp4 holds {NUM_STEMS} stems, and there are {len(names) - 1}: choose with --stems"
            )
        if names == self.names:
            return False
        self.names, self.rests = names, [*(rest for _, rest in further.values()), *(Rest(()) for _ in mixture)]
        self._tell_apart()
        return True

    def files(self, song: Song) -> dict[str, Path]:
        """Return the file that each stem of a song gets; the same for all where one file holds them together."""
        return self._files(song, self.names)

    def pictures(self, files: Mapping[str, Path]) -> dict[Path, Path]:
        """Return the picture that each file gets, if pictures are asked for."""
        return {path: path.with_suffix(".png") for path in files.values()} if self._options.spectrograms else {}

    def paths(self, song: Song) -> list[Path]:
        """Return everything that is written for a song, stems before pictures."""
        return self._paths(song, self.names)

    def expected(self, song: Song) -> list[Path]:
        """Return the same with one stem where they have no names yet."""
        return self._paths(song, self.names or UNNAMED)

    def _further(self, stems: Sequence[str]) -> dict[str, tuple[str, Rest]]:
        """Return what is written besides stems: the option that asked for it, and what it is."""
        options = self._options
        further: dict[str, tuple[str, Rest]] = {}
        if options.residual is not None:
            further[options.residual] = "--residual", REST
        if options.also_rest is not None:
            keys = [key_of(name) for name in stems]
            wanted = key_of(safe_name(options.also_rest)) if options.also_rest else ""
            if wanted and wanted not in keys:
                raise UsageError(f"--also-rest {options.also_rest}: this is not among the stems, {', '.join(stems)}")
            number = keys.index(wanted or ("vocals" if "vocals" in keys else keys[0]))
            name = "instrumental" if keys[number] == "vocals" else f"no_{stems[number]}"
            if name in further:
                raise UsageError(f"--residual {name} and --also-rest would be written as one file: rename the first")
            further[name] = "--also-rest", Rest((number,))
        return further

    def _files(self, song: Song, names: Sequence[str]) -> dict[str, Path]:
        folder: Path = self._options.output if "dir_name" in self._has else self._options.output / song.folder
        called = self._renamed.get(song.path, song.name)
        source = song.source_name
        known: dict[str, str | int] = {
            **self._common,
            "song": called,
            "file_name": called,
            "source": source,
            "ext_source": song.path.suffix.removeprefix("."),
            "dir": safe_name(song.path.absolute().parent.name),
            "dir_name": "" if song.folder == Path() else song.folder.as_posix(),
        }
        return {
            name: folder / fill_in(self._template, {**known, "stem": name, "instr": name, "number": number})
            for number, name in enumerate(names, start=1)
        }

    def _paths(self, song: Song, names: Sequence[str]) -> list[Path]:
        files = self._files(song, names)
        paths = dict.fromkeys(files.values()) if self._together else files.values()
        return [*paths, *self.pictures(files).values()]

    def _tell_apart(self) -> None:
        """Name songs after their whole files where that of two would be one, and refuse what is still one."""
        by_path = {song.path: song for song in self._songs}
        renamed = set(self._renamed)
        while True:
            planned = {song.path: self.expected(song) for song in self._songs}
            before = len(self._renamed)
            for group in alike(planned):
                self._renamed |= {path: by_path[path].source_name for path in group}
            if len(self._renamed) == before:
                break
        try:
            check_apart(planned)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if (new := [path for path in self._renamed if path not in renamed]) and rank_in_job().rank == 0:
            self._console.remark(f"named with their suffixes, to tell songs apart: {list_some([*map(str, new)])}")
