"""Merging: K adapters become one adapter, on the weight changes dW = scale * B @ A and never on the
factors; whole models likewise.
"""

from toolkit.merge.adapters_to_adapter import MergeReport as MergeReport
from toolkit.merge.adapters_to_adapter import common_base as common_base
from toolkit.merge.adapters_to_adapter import merge_adapters as merge_adapters
from toolkit.merge.adapters_to_adapter import merged_of as merged_of
from toolkit.merge.adapters_to_adapter import planned as planned
from toolkit.merge.adapters_to_adapter import same_input as same_input
from toolkit.merge.adapters_to_model import DenseReport as DenseReport
from toolkit.merge.adapters_to_model import merge_into_base as merge_into_base
from toolkit.merge.align_names import under_one_naming as under_one_naming
from toolkit.merge.apply_method import Method as Method
from toolkit.merge.apply_method import accepted as accepted
from toolkit.merge.apply_method import combine as combine
from toolkit.merge.apply_method import find_method as find_method
from toolkit.merge.models_to_model import merge_folders as merge_folders
from toolkit.merge.models_to_model import merge_models as merge_models
