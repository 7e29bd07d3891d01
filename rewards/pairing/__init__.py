"""Preference pairs: rules, eligibility, limits, report."""
