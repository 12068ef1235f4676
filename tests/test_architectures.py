"""Bases of every kind: answered and trained like peft, or refused in one line before anything starts."""
