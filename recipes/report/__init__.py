"""The page, its tables and figures."""
