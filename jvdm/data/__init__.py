"""Images to train on and to evaluate: sources, augmentation, batches."""

from jvdm.data.augmentation import AUGMENTATIONS, Augmentation
from jvdm.data.dataset import Dataset
from jvdm.data.pipeline import TrainBatches, evaluation_batches, num_evaluation_batches
from jvdm.data.sources import describe_sources, image_spec, load

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Dataset",
    "TrainBatches",
    "describe_sources",
    "evaluation_batches",
    "image_spec",
    "load",
    "num_evaluation_batches",
]
