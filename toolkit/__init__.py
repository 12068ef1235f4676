"""ftk: how different are two fine-tunes of one model on one data set, where does it matter, and what does a remedy buy?"""

__version__ = "0.1.0"
