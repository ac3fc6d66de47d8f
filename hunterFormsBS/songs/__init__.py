"""From files to files: what `python -m hunterFormsBS` does around a separation."""
