"""What only a GPU can show, and on the CPU what the tests themselves compute."""
