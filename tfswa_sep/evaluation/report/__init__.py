"""Present an evaluation: tables, charts, one HTML file."""
