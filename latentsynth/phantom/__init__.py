"""A procedural cohort of abdominal patients: the built-in data of demonstrations and tests."""
