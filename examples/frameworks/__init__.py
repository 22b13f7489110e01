"""Fine-tuning inside JAX frameworks. One script each; `make frameworks` runs them.

Every script fine-tunes a very small model, and checks what it shows: rows read off the model, a
loss that falls, rows within their radii, and a resumed run that equals an uninterrupted one bit for
bit. Random initial weights stand for pre-trained ones, so a script needs no download.
"""
