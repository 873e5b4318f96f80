"""What is kept: volumes on the grid, their latents, and batches of them by position."""
