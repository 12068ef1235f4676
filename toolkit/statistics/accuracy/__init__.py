"""How often runs are right, and how much that varies from run to run."""
