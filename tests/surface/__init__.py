"""The surface: what users of the installed package rely on, one line for each thing, kept in surface.txt.

The imports in this package are relative, so the Python of another checkout can run it on that checkout's code:
`cd tests && OTHER/.venv/bin/python -m surface write FILE`.
"""
