"""Merging: K adapters become one adapter, on the weight changes dW = scale * B @ A and never on the
factors; whole models likewise.
"""

from toolkit.merge.dense import DenseReport as DenseReport
from toolkit.merge.dense import merge_into_base as merge_into_base
from toolkit.merge.merge import MergeReport as MergeReport
from toolkit.merge.merge import common_base as common_base
from toolkit.merge.merge import merge_adapters as merge_adapters
from toolkit.merge.merge import merged_of as merged_of
from toolkit.merge.merge import planned as planned
from toolkit.merge.merge import same_input as same_input
from toolkit.merge.methods import METHODS as METHODS
from toolkit.merge.methods import Method as Method
from toolkit.merge.methods import accepted as accepted
from toolkit.merge.methods import combine as combine
from toolkit.merge.methods import find_method as find_method
from toolkit.merge.naming import under_one_naming as under_one_naming
from toolkit.merge.whole import merge_folders as merge_folders
from toolkit.merge.whole import merge_models as merge_models
