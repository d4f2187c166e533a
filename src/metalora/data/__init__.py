"""Task families: images with known attributes or domains, all drawn from explicit seeds."""
