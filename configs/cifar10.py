"""The flagship: CIFAR-10 without augmentation. For now it is VDM's setting.

    python main.py --mode=train --config=configs/cifar10.py

Published: 2.65 bits/dim (2107.00630, table 1), 10M steps.
"""

import pathlib
import runpy

# Config files are run by path, so a neighbour is read in the same way.
get_config = runpy.run_path(str(pathlib.Path(__file__).with_name("vdm_cifar10.py")))["get_config"]
