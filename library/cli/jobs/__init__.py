"""What the stand-alone scripts share: options, outcome and exit status, work shared by several processes."""
