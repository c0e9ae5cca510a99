"""What fits before anything trains: `lightning-ft plan`, found by its entry point. There are no hooks."""
