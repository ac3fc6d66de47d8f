"""What the command line does around a separation: what headers say, files that appear together, signals."""
