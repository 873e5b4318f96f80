"""How close synthetic volumes come to real ones."""
