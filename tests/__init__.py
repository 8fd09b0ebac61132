"""Tests are packages, so that two rooms may each have a `test_rows.py`."""
