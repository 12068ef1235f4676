"""One thread for every test: tiny models gain nothing from more, and threads of several test processes wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
