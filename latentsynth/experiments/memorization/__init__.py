"""The study of memorization: diffusion and GANs on nested subsets of patients."""
