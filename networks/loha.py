"""LoHa: updates that are elementwise products of two low-rank products.

The `--network_module` plug-in `networks.loha`: `create_network` for training, `create_network_from_weights` for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.loha_layer import LoHaLayer

create_network, create_network_from_weights = network_functions("networks.loha", LoHaLayer)
