"""Studies: what was asked, tried and found. README.md lists them; each runs as `python -m research.NAME` from the root."""
