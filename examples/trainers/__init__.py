"""Fine-tuning in common trainers. Each file is a complete example of one of them.

    python -m examples.trainers.nnx_tpgm         Flax NNX: batch statistics, dropout, held-out loss
    python -m examples.trainers.linen_tpgm       Flax linen's `TrainState`; the same
    python -m examples.trainers.equinox_ftp      Equinox, whose weights have outputs first
    python -m examples.trainers.lora             adapters near zero on frozen weights
    python -m examples.trainers.accumulation     one step for several batches
    python -m examples.trainers.mixed_precision  bfloat16 arithmetic on float32 weights

Run them from the repository's root, after `pip install -e '.[trainers]'`. Each takes 10 to 20
seconds of one core, mostly compilation, and less with `--fast`, a rehearsal. All train on `data`.

Accuracy in per cent on 500 handwritten digits / mean over thirteen shifted sets, of a first run:

                      pre-trained    Adam alone     wrapped
    nnx_tpgm          58.0 / 54.9    99.0 / 55.1    99.2 / 61.7
    linen_tpgm        56.2 / 55.6    99.0 / 57.6    99.0 / 63.1
    equinox_ftp       52.4 / 53.0    98.4 / 54.4    98.0 / 66.2
    lora              60.0 / 57.2    98.0 / 56.0    97.6 / 69.5
    accumulation      57.2 / 56.0    99.0 / 56.1    98.2 / 70.6
    mixed_precision   54.6 / 55.9                   98.8 / 68.6

One seed, and one learning rate, which is large for Adam alone: with a smaller one it loses less
under shift. The demo, `examples.digits`, compares the methods; these examples show how to use them.
"""
