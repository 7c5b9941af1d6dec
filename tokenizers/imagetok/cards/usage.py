"""The code of a model card: what a reader copies, which runs as it is written."""

from __future__ import annotations

from imagetok.markdown import python_block, python_text
from imagetok.tokenizer_config import TokenizerConfig

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def usage_code(config: TokenizerConfig, repo_id: str | None) -> str:
    """A block of Python that encodes a picture and decodes it again.

    Args:
        config: The tokenizer's.
        repo_id: Where it is loaded from; None is the folder that the card lies in.
    """
    (height, width), bottleneck = config.image_size, config.bottleneck
    mode, size = f'"{_MODES[config.channels]}"', f"({width}, {height})"
    lines = [
        "from PIL import Image",
        "",
        "from imagetok import ImageTokenizer",
        "",
        f"tok = ImageTokenizer.from_pretrained({python_text(repo_id or '.')})",
        f'picture = Image.new({mode}, {size}, "teal")  # or a path, bytes, an array; or a list',
        "",
    ]
    if bottleneck.is_discrete:
        lines += _discrete(config)
    else:
        lines += _continuous(config, f'Image.new({mode}, {size}, "orange")')
    return python_block(*lines)


def _discrete(config: TokenizerConfig) -> list[str]:
    bottleneck, (h, w) = config.bottleneck, config.grid_size
    codebook_size = max(bottleneck.codebook_sizes)
    lines = [
        f"ids = tok.encode(picture)  # int64 ({h}, {w}), each in [0, {codebook_size})",
        f"sequence = ids.flatten(-2)  # the {h * w} ids row by row, as a transformer reads them",
        "decoded = tok.decode(sequence)  # a PIL image",
    ]
    if bottleneck.has_posterior:
        lines += [
            f"log_probs = tok.encode_distribution(picture)  # float ({h}, {w}, {codebook_size})",
            "drawn = tok.sample_ids(picture)  # ids drawn from it",
        ]
    return lines


def _continuous(config: TokenizerConfig, other: str) -> list[str]:
    (h, w), width = config.grid_size, config.bottleneck.latent_dim
    lines = [
        f"latents = tok.encode_latents(picture)  # float ({width}, {h}, {w})",
        "decoded = tok.decode_latents(latents)  # a PIL image",
        f"walk = tok.interpolate(picture, {other}, steps=8)  # PIL images",
    ]
    if config.bottleneck.has_prior:
        lines += [
            "mean, log_var = tok.encode_distribution(picture)  # of the posterior",
            "samples = tok.sample(4)  # decoded draws from N(0, I)",
        ]
    return lines
