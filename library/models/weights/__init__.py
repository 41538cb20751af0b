"""Files of weights: reading, writing, headers, metadata, what kind of model one holds."""
