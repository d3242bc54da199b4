"""Images to train on and to evaluate: sources, augmentation, batches."""

from jvdm.data.augmentation import AUGMENTATIONS, Augmentation
from jvdm.data.dataset import Dataset
from jvdm.data.pipeline import TrainBatches, evaluation_batches, num_evaluation_batches
from jvdm.data.sources import describe_sources, image_spec, load, register
from jvdm.data.subject import Subject, check_shape, load_subject

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Dataset",
    "Subject",
    "TrainBatches",
    "check_shape",
    "describe_sources",
    "evaluation_batches",
    "image_spec",
    "load",
    "load_subject",
    "num_evaluation_batches",
    "register",
]
