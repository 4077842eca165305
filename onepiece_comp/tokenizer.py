def load_tokenizer(path, item_space):
    raise NotImplementedError

def build_tokenizer(*a, **k):
    raise NotImplementedError
