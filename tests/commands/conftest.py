"""Runs in the checkout, on a few of the quickstart's images, as those of tests/end_to_end."""

from tests.end_to_end.conftest import as_in_a_new_process, data_dir, in_the_checkout  # noqa: F401
