"""From files on disk to batches: manifests, geometry, windows, the caches of volumes and latents."""
