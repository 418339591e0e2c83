"""What networks learn from: places are drawn, pixels read, examples augmented."""
