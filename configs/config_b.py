"""Config B: minor improvements (paper App. B.2).

python experiments/train.py --config=configs/config_b.py:digits
"""

from ml_collections import ConfigDict

from configs import config_a
from configs.workloads import get_workload


def get_config(workload: str = "digits") -> ConfigDict:
    w = get_workload(workload)
    config = config_a.get_config(workload)
    config.letter = "b"
    config.title = "Minor improvements"
    config.optimizer.batch_size //= 2  # App. B.2: 2048 instead of 4096
    config.optimizer.alpha_ref *= 2  # App. B.2: 0.0002 instead of 0.0001
    config.optimizer.method.beta2 = 0.99  # App. B.2: faster response
    config.loss.P_mean = w.P_mean  # App. B.2: -0.4 for latents
    config.loss.P_std = w.P_std  # App. B.2: 1.0 for latents
    config.loss.uncertainty = True  # Eq. 21
    # App. B.2: no attention at the highest of these resolutions, 32x32.
    attention = config.network.attention_resolutions
    config.network.attention_resolutions = attention[1:]
    config.ema.halflives_mimg = ()  # Sec. 3: power-function averages only
    return config
