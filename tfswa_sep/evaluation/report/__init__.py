"""What an evaluation looks like: tables, charts, one HTML file."""
