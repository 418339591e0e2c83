"""How good readings are where the truth is known."""
