"""The subcommands of `hunterforms`: every module of this folder is one, under its own name.

Such a module imports neither torch nor numpy at its top, and has what `hunterFormsBS.program.parsing.Command` says.
"""
