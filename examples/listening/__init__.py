"""What `examples/listen.py` is made of: separating in the background, a server on the loopback address, a page."""
