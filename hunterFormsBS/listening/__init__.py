"""Songs separated in the browser, and by programs over HTTP: `hunterforms listen` starts it.

Only that command imports this; the extra `listen` installs what it needs.
"""
