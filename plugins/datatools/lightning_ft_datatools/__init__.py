"""Tools for data files as commands of lightning-ft. It has no hooks: `lightning-ft data` is found by its entry point."""
