"""Pure functions of tensors. They know no files, no models and no splits."""
