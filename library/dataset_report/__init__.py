"""The page and the window of --debug_dataset, which show the data as training sees it."""
