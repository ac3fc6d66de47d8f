"""Files of songs: found, read, resampled, separated and written, many of them; what the command line is made of."""
