"""The viewer: a server on this machine, and a page that needs nothing else."""
