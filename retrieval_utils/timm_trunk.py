"""Networks of timm as trunks: up to their last feature maps, for images of any size."""

from __future__ import annotations

import torch
from torch import nn

from retrieval_utils.checkpoints import near


class TimmTrunk(nn.Module):
    """A network of timm up to its last feature maps: images (B, 3, H, W) -> (B, C, h, w).

    The patch tokens of a vision transformer become a map, for images of any size; with `class_token` its class token
    does, as a map of one place.
    """

    def __init__(self, name: str, pretrained: bool, class_token: bool):
        import timm

        super().__init__()
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            raise ValueError(f"timm has no network '{architecture}'.{near(architecture, timm.list_models())}")
        self.transformer = timm.models.is_model_in_modules(architecture, ["vision_transformer", "eva"])
        any_size = {"dynamic_img_size": True, "dynamic_img_pad": True} if self.transformer else {}
        try:
            self.model = timm.create_model(name, pretrained=pretrained, num_classes=0, **any_size)
        except OSError as error:
            raise OSError(f"The weights of timm's '{name}' could not be loaded ({error}); go online once.") from None
        except RuntimeError as error:
            raise ValueError(f"timm cannot make '{name}': {error}") from None
        if not hasattr(self.model, "forward_intermediates"):
            raise ValueError(f"timm's '{name}' gives no feature maps; take another network.")
        if class_token and not getattr(self.model, "num_prefix_tokens", 0):
            raise ValueError(f"'{name}' has no class token for the pooling 'cls'; take gem, mac or spoc.")
        self.class_token = class_token

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        last = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        if not self.transformer:
            return self.model.forward_intermediates(images, **last)[0]  # (B, C, h, w)
        maps, prefix = self.model.forward_intermediates(images, return_prefix_tokens=True, **last)[0]
        return prefix[:, 0, :, None, None] if self.class_token else maps  # (B, C, 1, 1) or (B, C, h, w)
