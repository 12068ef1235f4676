"""The embedded world: a small language, an instruction task in it, and a base model pretrained on it."""
