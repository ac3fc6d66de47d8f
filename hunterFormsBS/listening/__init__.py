"""Songs separated in the browser, and by programs over HTTP: `hunterFormsBS.listening.program` starts it.

Nothing else in the package imports this; the extra `listen` installs what it needs.
"""
