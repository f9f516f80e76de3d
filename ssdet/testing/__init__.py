"""Contract checks for the tests of plugins (docs/extending.md).

Each function raises AssertionError that names the plugin and the violated requirement.
"""

from ssdet.testing.augmentations import check_augmentation
from ssdet.testing.data_sets import check_data_set
from ssdet.testing.models import check_model
from ssdet.testing.protocols import check_protocol
from ssdet.testing.stores import check_store

__all__ = ["check_augmentation", "check_data_set", "check_model", "check_protocol", "check_store"]
