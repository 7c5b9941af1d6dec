"""Train a tokenizer under a launcher; same arguments as `imagetok train`.

Start it with one of:

    accelerate launch scripts/train.py vqvae-shapes --output-dir runs/vqvae
    torchrun --nproc_per_node 8 scripts/train.py vqvae-shapes --output-dir runs/vqvae
"""

import sys

from imagetok.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
