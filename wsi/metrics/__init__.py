"""How good scores and detections are: arrays in, numbers out. Knows boxes and nothing else."""
