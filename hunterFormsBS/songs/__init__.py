"""From files to files: what `hunterforms separate` does around a separation."""
