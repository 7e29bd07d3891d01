"""`mpo evaluate`: policies × critics × N on benchmarks, with one table and one page at the end."""
