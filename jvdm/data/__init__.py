"""Data to train on and to evaluate: sources, augmentation, batches.

A batch of training is a function of seed and step; a pass of evaluation has every example once.
"""

from jvdm.data.augmentation import AUGMENTATIONS, Augmentation
from jvdm.data.dataset import Dataset, shape_text
from jvdm.data.example_set import ExampleSet, check_suits, load_examples, of_dataset
from jvdm.data.pipeline import TrainBatches, evaluation_batches, num_evaluation_batches
from jvdm.data.sources import data_spec, describe_sources, load, register

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Dataset",
    "ExampleSet",
    "TrainBatches",
    "check_suits",
    "data_spec",
    "describe_sources",
    "evaluation_batches",
    "load",
    "load_examples",
    "num_evaluation_batches",
    "of_dataset",
    "register",
    "shape_text",
]
