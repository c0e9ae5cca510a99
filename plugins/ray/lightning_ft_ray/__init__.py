"""`lightning-ft ray fit`: brings a command and no hook."""
