"""Config C: architectural streamlining (paper Sec. 2.1, App. B.3).

python experiments/train.py --config=configs/config_c.py:digits
"""

from ml_collections import ConfigDict

from configs import config_b


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_b.get_config(workload)
    config.letter = "c"
    config.title = "Architectural streamlining"
    net = config.network
    net.weights = "plain"  # App. B.3: no biases anywhere
    net.constant_channel = True  # App. B.3: replaces the biases
    net.modulation = "scale"  # App. B.3: no conditioning offset
    net.norm = "rms_group"  # Eq. 29; [choice] still min(32, C // 4) groups
    net.attention = "cosine"  # Eq. 30-34
    net.init = "uniform"  # App. B.3: for the label layer, too,
    net.zero_last = False  # and for the last layers
    net.unit_variance_label = True  # App. B.3: one-hot times sqrt(N)
    net.noise_features = "fourier"  # Eq. 35, 36
    net.clamp = 256.0  # [choice] keeps float16 in range
    net.half_precision = "full"  # Fig. 18
    return config
