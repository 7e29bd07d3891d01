"""What the page shows beside tables: problems with their responses, and figures."""
