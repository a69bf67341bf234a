"""The styles by name. A style fixes silhouette and parts; counts, heights, places and roof forms are drawn by lot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from retrieval_utils.datasets.toy.canvas import Canvas
from retrieval_utils.datasets.toy.look import Look, Lots
from retrieval_utils.datasets.toy.modern import cinema, glass_tower, warehouse
from retrieval_utils.datasets.toy.ornaments import Spots, decorate
from retrieval_utils.datasets.toy.sacred import classical_temple, domed_basilica, gothic_church, pagoda
from retrieval_utils.datasets.toy.town import castle, lighthouse, timbered_house

STYLES: dict[str, Callable[[Canvas, Lots], Spots]] = {
    "gothic-church": gothic_church, "classical-temple": classical_temple, "timbered-house": timbered_house,
    "glass-tower": glass_tower, "warehouse": warehouse, "domed-basilica": domed_basilica, "pagoda": pagoda,
    "castle": castle, "cinema": cinema, "lighthouse": lighthouse,
}  # fmt: skip


def draw_facade(style: str, rng: np.random.Generator) -> tuple[Image.Image, Image.Image, Image.Image, float]:
    """One building of `style`: RGBA facade, window numbers (0: none), outline of the body, all (512, 512), and depth.

    The body leaves out the ornaments and whatever is too thin to have a side; the depth is in facade widths.
    """
    lots = Lots(rng)
    canvas = Canvas(Look.by_lot(lots), lots)  # before the style takes any lot, so that no look depends on it
    spots = STYLES[style](canvas, lots)
    body = canvas.alpha.reduce(4).filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
    decorate(canvas, spots)
    facade = canvas.colour.copy()
    facade.putalpha(canvas.alpha)
    return facade, canvas.glass, body.resize(facade.size, Image.BILINEAR), spots.depth
