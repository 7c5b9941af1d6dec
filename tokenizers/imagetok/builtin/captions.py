"""English captions of scenes: what stands in the image, and where the first object stands.

Every relation is that of the first-named object to another one, read along the axis on which the
two centres lie further apart: "a large red circle above a small blue striped square, left of a
small green star and below a large pink dotted ring".
"""

from __future__ import annotations

from imagetok.builtin.scenes import Scene, SceneObject


def caption(scene: Scene) -> str:
    """Describe a scene in one English phrase, objects in the scene's order."""
    first, *others = scene.objects
    relations = [f"{_relation(first, other)} {_describe(other)}" for other in others]
    text = " ".join([_describe(first), ", ".join(relations[:-1])]).strip()
    if len(relations) > 1:
        return f"{text} and {relations[-1]}"
    return " ".join([text, *relations])


def _describe(drawn: SceneObject) -> str:
    texture = [] if drawn.texture == "solid" else [drawn.texture]
    return " ".join(["a", drawn.size, drawn.colour, *texture, drawn.shape])


def _relation(first: SceneObject, other: SceneObject) -> str:
    across, down = first.x - other.x, first.y - other.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"
