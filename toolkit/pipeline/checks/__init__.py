"""What would fail after hours is refused before: first without torch, then with the base."""
