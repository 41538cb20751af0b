"""The fixtures of tests/data."""

from tests.data.conftest import load_toml, make_images  # noqa: F401
