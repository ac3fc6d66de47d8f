"""The program `hunterforms`: one command line with subcommands, each a module of `hunterFormsBS.program.commands`.

Nothing here imports PyTorch before a command runs.
"""
