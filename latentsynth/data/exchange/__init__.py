"""What is asked for and what goes out: masks to paint, scans to paint into, folders of synthetic volumes."""
