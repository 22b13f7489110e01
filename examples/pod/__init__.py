"""Fine-tuning a decoder on all devices there are: one CPU, several processes, a TPU pod.

A small language model is pre-trained on made-up languages, then fine-tuned on another one or on a
text file, with FTP, TPGM or plain AdamW. Sharding, checkpoints, resuming and logging are as a large
model would need them. Nothing is downloaded.

In reading order: `settings` holds what determines a run, `options` is the command line; `data`
makes the batches; `model` is the decoder; `sharding` shards arrays over the devices; `training`
compiles the step; `checkpoints` saves and restores; `loop` runs the steps; `reporting` shows the
results. The program is `examples/pod_finetune.py`.
"""
