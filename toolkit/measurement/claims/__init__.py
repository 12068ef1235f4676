"""Claims about run-to-run variance held against a run, and what to expect of many more runs; no
torch, unless weights are read.
"""

from toolkit.measurement.claims.assess import CLAIMS, RUNS, hold_claims, outlook_of, verdict
from toolkit.measurement.claims.schema import ORIGIN, About, Claim, read_claims
from toolkit.measurement.claims.text import claims_text

__all__ = [
    "CLAIMS",
    "ORIGIN",
    "RUNS",
    "About",
    "Claim",
    "claims_text",
    "hold_claims",
    "outlook_of",
    "read_claims",
    "verdict",
]
