"""How well a segmenter does on patients it never saw."""
