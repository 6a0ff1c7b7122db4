"""Config G: magnitude-preserving fixed functions (paper Sec. 2.5, App. B.7).

python experiments/train.py --config=configs/config_g.py:digits
"""

from ml_collections import ConfigDict

from configs import config_f
from configs.workloads import get_workload


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_f.get_config(workload)
    config.letter = "g"
    config.title = "Magnitude-preserving fixed-function layers"
    net = config.network
    net.noise_features = "mp_fourier"  # Eq. 75
    net.mp_activation = True  # Eq. 81
    net.add = "mp_sum"  # Eq. 88
    net.cat = "mp_cat"  # Eq. 103
    net.gain = True  # App. B.7: learned, from zero
    net.dropout = get_workload(workload).dropout  # Table 6: 0 up to size S
    return config
