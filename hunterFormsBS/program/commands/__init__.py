"""The subcommands of `hunterforms`: every module in this folder is one.

A module imports neither torch nor numpy at import time, and implements `hunterFormsBS.program.parsing.Command`.
"""
