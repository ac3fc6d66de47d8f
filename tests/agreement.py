"""All reference vectors in one table: `python -m tests.agreement`.

Each is loaded by `from_checkpoint` from its weights and upstream's arguments, recognised by its keys. The folders are
those of `test_parity_shared` and `test_parity_heads`.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from hunterFormsBS.checkpoint.recognition import recognise
from tests.checkpoint import test_parity_heads, test_parity_shared


def main() -> None:
    """Print the table."""
    rows = [("vector", "recognised as", "audio", "limit", "loss and gradient")]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in test_parity_shared.NAMES:
            differences = test_parity_shared.worst_differences(name, Path(folder))
            state_dict = test_parity_shared.read(name)[2]
            upstream = test_parity_shared.NAMED_UPSTREAM.get(name)
            family = recognise(state_dict, upstream).family.name + (", by its name" if upstream else "")
            audio, losses = differences.pop("audio"), max(differences.values(), default=None)
            shown = "" if losses is None else f"{losses:.0e}"
            rows.append((name, family, f"{audio:.0e}", f"{test_parity_shared.LIMIT:.0e}", shown))
        for name in test_parity_heads.NAMES:
            variants = recognise(test_parity_heads.read(name)[0]).variants
            known = variants[0].name if variants else "MSST's experimental classes, by its name"
            audio = test_parity_heads.worst_difference(name, Path(folder))
            rows.append((name, known, f"{audio:.0e}", f"{test_parity_heads.LIMIT:.0e}", ""))
    for row in (rows[0], ("---",) * 5, *rows[1:]):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
