"""Whole models out of adapters. Commands only: the entry points name them."""
