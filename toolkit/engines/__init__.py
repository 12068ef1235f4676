"""Where units of work run: `run(function, units, on_progress)` yields (unit, result) as units finish, in no fixed order.

A unit has the same number of threads and the same shapes on every engine: where it runs must not change a bit.
"""

from toolkit.engines.local import LocalEngine as LocalEngine
from toolkit.engines.local import Progress as Progress
from toolkit.engines.local import WorkerDied as WorkerDied
from toolkit.engines.ray import RayEngine as RayEngine

ENGINES = {"local": LocalEngine, "ray": RayEngine}
"""name -> class, made with (device, workers)"""
