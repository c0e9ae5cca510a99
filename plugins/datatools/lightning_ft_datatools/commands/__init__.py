"""The tools of `lightning-ft data`, one module each; `main` of each takes the words after its name."""
