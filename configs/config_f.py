"""Config F: group normalizations removed (paper Sec. 2.4, App. B.6).

python experiments/train.py --config=configs/config_f.py:digits
"""

from ml_collections import ConfigDict

from configs import config_e


def get_config(workload: str = "digits") -> ConfigDict:
    config = config_e.get_config(workload)
    config.letter = "f"
    config.title = "Remove group normalizations"
    net = config.network
    net.norm = "none"  # App. B.6
    net.pixel_norm = True  # App. B.6: of the encoder's main path
    net.block = "main_path"  # App. B.6, simplifications 1 and 2
    net.output_silu = False  # App. B.6, simplification 3
    net.embedding_layers = 1  # App. B.6, simplification 4
    return config
