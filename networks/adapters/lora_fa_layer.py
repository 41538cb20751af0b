"""LoRA-FA layer: a LoRA whose `lora_down` stays as it was drawn."""

from __future__ import annotations

from torch import nn

from networks.adapters.lora_layer import LoRALayer


class LoRAFALayer(LoRALayer):
    """Trains `lora_up` alone.

    Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation", 2308.03303: for the gradients, of a layer's
    input only its projection to the rank is kept.
    """

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.lora_up.parameters())
