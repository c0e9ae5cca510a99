"""Blind rating of two models' answers by people: the command `lightning-ft rate`."""
