"""A real pre-trained model under a real shift: sentiment of movie reviews, and of other texts.

MiniLM, a BERT encoder with 22.6 million weights, gets a linear head and is fine-tuned on 1,600
sentences of movie reviews. It is tested on more of them, and on Amazon reviews, editorials of the
New York Times and tweets. The model and the sentences are fetched from the Python package index.

In reading order: `download` fetches; `encoder` is the model, `checkpoint` reads its weights;
`texts` reads sentences and makes tokens, `data` splits them; `training` fits the head, fine-tunes
and tests; `methods` holds the methods; `demo` is the program; `summary`, `table` and `figure` show
the results.
"""
