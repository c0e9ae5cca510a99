"""Metrics of source code: by its text, by its syntax tree, and, with permission, by running its tests."""
