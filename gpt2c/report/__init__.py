"""The report of runs: one HTML file, self-contained, for a browser without a network."""
