"""Formats of other programs, a file each: models out and in."""
