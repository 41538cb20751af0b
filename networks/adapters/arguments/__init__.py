"""The values of `--network_args`, parsed from text without torch; ValueError says what a value must be."""
