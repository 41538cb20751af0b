"""LoRA-FA: a LoRA with half of its weights frozen, which needs less memory for activations.

The `--network_module` plug-in `networks.lora_fa`: `create_network` for training, `create_network_from_weights`
for files.
"""

from networks.adapters.creation import network_functions
from networks.adapters.lora_fa_layer import LoRAFALayer

create_network, create_network_from_weights = network_functions("networks.lora_fa", LoRAFALayer)
