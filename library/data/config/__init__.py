"""What the user said of the data: options, the dataset file, and what rules each other out."""
