"""How many replicas: before a run, while it is at work, and for the next one."""
