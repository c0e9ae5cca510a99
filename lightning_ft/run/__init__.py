"""What surrounds training: the run folder, checkpoints, callbacks, the preflight."""
