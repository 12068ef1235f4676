"""Outcomes of a run, or anybody's predictions, to results: figures with intervals, claims, gates,
plans. No torch.
"""
