"""Whether synthetic masks are like real ones."""
