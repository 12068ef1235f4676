"""Texts on their way in and out: the nearest known name, others' regular expressions, what a
terminal or a page must not obey.
"""
