"""The user's description of the data: options, the dataset file (TOML or JSON), rules of what cannot be combined."""
