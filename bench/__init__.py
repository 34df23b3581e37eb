"""Our kernels beside their peers: `make bench`, or `python bench/run.py --help`."""
