"""The recipes that ours plays with."""

from dataclasses import replace

from flawflow.backbones import default_spec
from flawflow.recipe import Recipe, default, deit


def our_recipe(method: str, network: str, size: int) -> Recipe:
    """The recipe of a cell; a network other than the recipe's is tapped where its kind is by default."""
    if method == "ours-default":
        return default()
    recipe = replace(deit(), size=size)
    return recipe if network == recipe.backbone.name else replace(recipe, backbone=default_spec(network))
