"""Results for people: one HTML file, charts, the terminal's table, model cards."""
