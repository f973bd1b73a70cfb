"""Data sets: digits, MNIST, CIFAR-10, image folders, and tensors of the user's."""

from amc.data.build import DATA_SETS, build_data
from amc.data.dataset import DataSet
from amc.data.options import DataOptions
from amc.data.split import Split

__all__ = ["DATA_SETS", "DataOptions", "DataSet", "Split", "build_data"]
