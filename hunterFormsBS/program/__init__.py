"""The program `hunterforms`."""
