"""Merging: K adapters become one adapter, on the weight changes dW = scale * B @ A and never on the
factors; whole models likewise.
"""

from toolkit.merging.adapters_to_adapter import MergeReport as MergeReport
from toolkit.merging.adapters_to_adapter import common_base as common_base
from toolkit.merging.adapters_to_adapter import merge_adapters as merge_adapters
from toolkit.merging.adapters_to_adapter import merged_of as merged_of
from toolkit.merging.adapters_to_adapter import planned as planned
from toolkit.merging.adapters_to_adapter import same_input as same_input
from toolkit.merging.adapters_to_model import DenseReport as DenseReport
from toolkit.merging.adapters_to_model import merge_into_base as merge_into_base
from toolkit.merging.align_names import under_one_naming as under_one_naming
from toolkit.merging.apply_method import Method as Method
from toolkit.merging.apply_method import accepted as accepted
from toolkit.merging.apply_method import combine as combine
from toolkit.merging.apply_method import find_method as find_method
from toolkit.merging.models_to_model import merge_folders as merge_folders
from toolkit.merging.models_to_model import merge_models as merge_models
