"""How many examples a property gets beside the others."""

from __future__ import annotations

from hypothesis import settings

often = settings(max_examples=4 * settings.default.max_examples)
"""For properties that are quick to try."""
