"""Config E: control of the effective learning rate (paper Sec. 2.3, App. B.5).

python experiments/train.py --config=configs/config_e.py:digits
"""

from ml_collections import ConfigDict

from configs import config_d
from configs.workloads import get_workload
from edm_jax.menu import choice


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_d.get_config(workload)
    config.letter = "e"
    config.title = "Control effective learning rate"
    config.optimizer.forced_weight_norm = True  # Eq. 66
    t_ref = get_workload(workload).t_ref
    config.optimizer.schedule = choice("inverse_sqrt", t_ref=t_ref)  # Eq. 67
    return config
