"""OFT: rotations of the output channels of layers.

The `--network_module` plug-in `networks.oft`: `create_network` for training, `create_network_from_weights` for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.oft_layer import OFTLayer

create_network, create_network_from_weights = network_functions("networks.oft", OFTLayer)
