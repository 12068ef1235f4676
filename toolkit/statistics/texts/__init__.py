"""How far apart texts of two runs are, and where they part."""
