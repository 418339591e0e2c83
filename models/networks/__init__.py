"""Networks, each in its own file, and the interface by which every engine runs them."""
