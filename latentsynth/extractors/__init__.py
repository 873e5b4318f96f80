"""Networks that turn volumes into features: of a file, with random weights, or trained by contrast."""
