"""`python -m segscse`, which torchrun needs: `torchrun --nproc-per-node 2 -m segscse train ...`."""

from segscse.cli import main

main()
