"""What a mitigation or another recipe changes: two arms that answer the same prompts."""
