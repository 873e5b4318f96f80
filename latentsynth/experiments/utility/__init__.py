"""The study of utility: segmenters trained on mixtures of real and synthetic patients."""
