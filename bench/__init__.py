"""Scripts that measure, run as `python bench/NAME.py`; research takes `environment` from here."""
