"""Response → its final answer → a verdict; and when two final answers mean the same."""
