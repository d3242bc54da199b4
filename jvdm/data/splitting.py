"""A test split of data that has none: a random permutation of the examples, fixed by a seed.

    order = the permutation of 0..n-1 by numpy's PCG64(seed),   m = floor(test_fraction * n + 1/2)
    train = order[: n - m],   test = order[n - m :]

It depends on n and the seed alone, and a larger fraction of the same seed only adds to the test split. The
order stays random, so that the first images of a split are a sample of it, whatever their files are called.
"""

import dataclasses
import logging
import math
from typing import NamedTuple

import numpy as np

from jvdm.core.errors import UserError

log = logging.getLogger("jvdm")

TEST_FRACTION = 0.1


class Division(NamedTuple):
    """Which examples each split holds.

    Attributes:
        train, test: int64 [n - m], [m] positions.
        version: the division in words, as the version of a dataset.
    """

    train: np.ndarray
    test: np.ndarray
    version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How a test split is held out.

    Attributes:
        test_fraction: of the examples, between 0 and 1.
        seed: of the permutation, from 0.
    """

    test_fraction: float = TEST_FRACTION
    seed: int = 0

    def divide(self, num: int, where: str, why: str, *, what: str = "images") -> Division:
        """The splits of `num` examples, which the log names in one line.

        Args:
            num: the number of examples, n.
            where: the file or folder, for messages.
            why: what it lacks or has, for the log: "has no test/".
            what: the examples are.

        Raises:
            UserError: an option that is impossible, or a split without an example.
        """
        fraction, seed = self.test_fraction, self.seed
        if not 0 < fraction < 1:
            raise UserError(f"config.data.test_fraction is {fraction}: give a number between 0 and 1")
        if seed < 0:
            raise UserError(f"config.data.split_seed is {seed}: give 0 or more")
        if num < 2:
            held = f"{num} {what.removesuffix('s') if num == 1 else what}"
            raise UserError(f"{where} {why} and holds {held}, too few for a train and a test split")
        num_test = math.floor(fraction * num + 0.5)
        if num_test == 0:
            raise UserError(
                f"{where} {why}, and config.data.test_fraction={fraction:g} of {num} {what} leaves none to "
                f"test on; give {1 / num:.2g} or more"
            )
        if num_test == num:
            raise UserError(
                f"{where} {why}, and config.data.test_fraction={fraction:g} of {num} {what} leaves none to "
                "train on; give less, such as 0.5"
            )
        log.info(
            "%s %s: %d of %d %s, chosen by data.split_seed=%d, are the test split",
            *(where, why, num_test, num, what, seed),
        )
        order = np.random.Generator(np.random.PCG64(seed)).permutation(num)
        return Division(order[:-num_test], order[-num_test:], f"{num_test} of {num} held out by seed {seed}")
