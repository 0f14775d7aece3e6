"""Errors that a user can cause and mend. Everything else is a bug and stays a plain Python error."""

from __future__ import annotations


class IntvitError(ValueError):
    """Bad input: one line that names the place, the rule and the actual value. The CLI exits with 2."""
