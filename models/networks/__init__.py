"""Networks: one file each, and the contract by which every engine runs them."""
