"""The embedded world: images of real handwritten digits, questions about them, exact answers."""
