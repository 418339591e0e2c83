"""Training: recipes, the loops, their state; `data` draws and reads the examples."""
