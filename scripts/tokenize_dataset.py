"""Tokenize a dataset under a launcher; same arguments as `imagetok tokenize`.

Start it with one of:

    accelerate launch scripts/tokenize_dataset.py --tokenizer DIR --dataset NAME --output-dir OUT
    torchrun --nproc_per_node 8 scripts/tokenize_dataset.py --tokenizer DIR ...
    srun --ntasks 16 python scripts/tokenize_dataset.py --tokenizer DIR ...
"""

import sys

from imagetok.cli import main

if __name__ == "__main__":
    main(["tokenize", *sys.argv[1:]])
