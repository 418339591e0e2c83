"""Phantoms of kidneys stained for C4d."""
