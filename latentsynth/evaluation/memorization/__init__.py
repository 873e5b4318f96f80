"""Whether synthetic volumes are copies of training patients."""
