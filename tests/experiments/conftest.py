"""Fixtures of the tests of filtering and exporting."""

from reported_set import reported  # noqa: F401 (fixture)
