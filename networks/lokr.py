"""LoKr: updates that are Kronecker products.

The `--network_module` plug-in `networks.lokr`: `create_network` for training, `create_network_from_weights` for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.lokr_layer import LoKrLayer

create_network, create_network_from_weights = network_functions("networks.lokr", LoKrLayer)
