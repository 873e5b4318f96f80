"""One loop that trains everything, and one recipe per thing trained."""
