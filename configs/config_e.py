"""Config E: control of the effective learning rate (paper Sec. 2.3, App. B.5).

python experiments/train.py --config=configs/config_e.py:digits
"""

from ml_collections import ConfigDict

from configs import config_d
from configs.workloads import get_workload


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_d.get_config(workload)
    config.letter = "e"
    config.title = "Control effective learning rate"
    config.optimizer.forced_weight_norm = True  # Eq. 66
    config.optimizer.t_ref = get_workload(workload).t_ref  # Eq. 67
    return config
