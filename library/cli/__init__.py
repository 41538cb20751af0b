"""Command line: options, config files, errors, logging, progress, and files that are written atomically."""
