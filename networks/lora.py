"""LoRA: trained low-rank updates of the Linear and convolution layers of U-Net and text encoder.

The `--network_module` plug-in `networks.lora`: `create_network` for training, `create_network_from_weights` for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.lora_layer import LoRALayer

create_network, create_network_from_weights = network_functions("networks.lora", LoRALayer)
