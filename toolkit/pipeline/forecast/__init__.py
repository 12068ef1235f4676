"""What a run will take, before it runs: wall time, memory and disk of every stage, from a short
probe on this machine.

As many worker processes as the run will have do a little of its work at the same time, by the run's
own functions: one stack for a few steps, written; a merge of each kind; some of the prompts. What
they took is added up over the units of work that the run will have. Sizes of files follow from
shapes.
"""

from toolkit.pipeline.forecast.totals import Forecast as Forecast
from toolkit.pipeline.forecast.totals import Stage as Stage
from toolkit.pipeline.forecast.totals import compared as compared
from toolkit.pipeline.forecast.totals import forecast as forecast
from toolkit.pipeline.forecast.totals import save as save
from toolkit.pipeline.forecast.work import Part as Part
