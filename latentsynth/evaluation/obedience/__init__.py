"""Whether volumes show the masks they were made for."""
