"""What lies on disk: whole files, folders that say what they are, replicas, outcomes, results. No
torch.
"""
