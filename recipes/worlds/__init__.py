"""Small worlds that come with the project, for the demo and the tests."""
