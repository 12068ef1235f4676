"""Units of work: which stack holds which replica, and how much of the work is done."""

from toolkit.engines.local import Shares
from toolkit.plan import stacks_for


def test_stacks_are_whole_and_know_whom_they_hold():
    assert stacks_for([9, 0, 3, 8, 3], 4) == {0: (0, 3), 2: (8, 9)}
    assert stacks_for([], 4) == {}


def test_shares_add_up_and_end_at_exactly_one():
    shares = Shares(7)
    for number, share in [(0, 0.1), (0, 0.3), (0, 0.2), (1, 0.7), (9, 1.0)]:  # the third is late, the last of an earlier list
        shares.put(number, share)
    assert abs(shares.mean - (0.3 + 0.7) / 7) < 1e-12
    for number in range(7):
        shares.put(number, 1.0)
        shares.put(number, 0.9)
    assert shares.mean == 1.0
