"""What the drop-in `smmapd` is made of: Cyrus' words, its master's contract, and what stands around them."""
