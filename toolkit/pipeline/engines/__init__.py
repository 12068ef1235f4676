"""Where units of work run: `run(function, units, on_progress)` yields (unit, result) as units
finish, in no fixed order.

A unit has the same number of threads and the same shapes on every engine: where it runs must not
change a bit.
"""

from toolkit.pipeline.engines.local import LocalEngine as LocalEngine
from toolkit.pipeline.engines.local import Progress as Progress
from toolkit.pipeline.engines.local import WorkerDied as WorkerDied
from toolkit.pipeline.engines.ray import RayEngine as RayEngine

ENGINES = {"local": LocalEngine, "ray": RayEngine}
"""name -> class, made with (device, workers)"""
