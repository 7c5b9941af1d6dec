"""Evaluate a tokenizer under a launcher; same arguments as `imagetok evaluate`.

Start it with:

    accelerate launch scripts/evaluate.py --tokenizer runs/vqvae/tokenizer --dataset builtin:shapes
"""

import sys

from imagetok.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
