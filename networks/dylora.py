"""DyLoRA: a LoRA that can be cut to any lower rank.

The `--network_module` plug-in `networks.dylora`: `create_network` for training, `create_network_from_weights`
for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.dylora_layer import DyLoRALayer

create_network, create_network_from_weights = network_functions("networks.dylora", DyLoRALayer)
