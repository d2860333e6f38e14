"""One SAE over several processes, each of which holds a block of its latents.

Under ``torchrun`` every process (a *rank*) trains the encoder columns and decoder rows of its own
latents. Results equal those of one process up to rounding. docs/sharding.md has the memory and the
communication of a step, as :mod:`.costs` computes them.

The parameters are plain tensors, not DTensors. Most of a step runs in kernels without sharding
rules (embedding bags, sampled products, hand-written gradients), and a DTensor would be unpacked
before each of them. What the ranks exchange is therefore written out: the collectives are in
:mod:`.ranks`, and each other module names what it exchanges.

- :mod:`.ranks`: the processes and their collectives
- :mod:`.layout`: which latents a rank has, and which axis of a tensor is that of the latents
- :mod:`.selection`: the k largest pre-activations over all ranks
- :mod:`.similar`: neighbours and cosines, from decoder blocks that travel in a ring
- :mod:`.pairs`: the penalty on pairs of latents of different ranks; joint firings
- :mod:`.sae`: training SAEs that hold a block of the latents
- :mod:`.trainer`: gradient norm, log and batches over all ranks
- :mod:`.files`: checkpoints in parts, and the export as one file
- :mod:`.runner`: the runner, and the start of the processes
- :mod:`.costs`: memory, exchange and disk space, by arithmetic alone
"""
