"""Print a script for completion in a shell."""

from __future__ import annotations

import argparse
import sys

from hunterFormsBS.console import Console
from hunterFormsBS.program.completion import SHELLS, script

EXAMPLES = """\
  eval "$(hunterforms completion bash)"
      for bash, in ~/.bashrc; for zsh the same with zsh in ~/.zshrc, after compinit

  hunterforms completion fish > ~/.config/fish/completions/hunterforms.fish
      for fish, once

  hunterforms completion powershell | Out-String | Invoke-Expression
      for PowerShell, in the file that $PROFILE names
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shell", choices=SHELLS, help="shell of the script")


def run(options: argparse.Namespace, _console: Console) -> int:
    """Print the script."""
    sys.stdout.write(script(options.shell))
    return 0
