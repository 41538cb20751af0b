"""Dataset preview: the HTML page of --debug_dataset and the window of --debug_dataset_window."""
