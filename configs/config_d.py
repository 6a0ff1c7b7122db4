"""Config D: magnitude-preserving learned layers (paper Sec. 2.2, App. B.4).

python experiments/train.py --config=configs/config_d.py:digits
"""

from ml_collections import ConfigDict

from configs import config_c
from configs.workloads import get_workload


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_c.get_config(workload)
    config.letter = "d"
    config.title = "Magnitude-preserving learned layers"
    config.network.weights = "mp"  # Eq. 47
    config.network.init = "normal"  # App. B.4: N(0, 1)
    # App. B.4: larger weights need a larger rate, 0.0100 instead of 0.0002.
    config.optimizer.alpha_ref = get_workload(workload).alpha_ref_mp
    config.optimizer.loss_scale = 1.0  # Fig. 19
    return config
