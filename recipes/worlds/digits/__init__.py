"""The embedded world: pictures of real handwritten digits, questions about them, exact answers."""
