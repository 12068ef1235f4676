"""Who answers which prompts: replicas in one batch, ensembles, and the outcomes that they leave."""
