"""The quality of readings of slides whose truth is known."""
