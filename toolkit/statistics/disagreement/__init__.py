"""How often, and in what, two runs of one procedure differ."""
