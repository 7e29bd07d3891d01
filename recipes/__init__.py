"""Runnable recipes. Nothing imports them but the command line and the tests."""
