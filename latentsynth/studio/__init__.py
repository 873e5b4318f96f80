"""A page on this machine where masks are drawn and painted by a model."""
