"""Adapters that are there already: merged, asked, inspected, without a recipe of their own."""
