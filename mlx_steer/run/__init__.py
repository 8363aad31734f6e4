"""What a run writes and reads; no mlx."""
