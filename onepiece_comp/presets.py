"""Presets: sizes of our recipe, and other people's recipes as the same switches set otherwise.

What a preset leaves out has the default of `config.py`. Where a recipe cannot be had to the letter, the comment says
what differs.
"""

_BASE = {"width": 512, "heads": 8, "feature_width": 128, "embedding_width": 128, "hash_sizes": [2000003, 3000017],
         "hash_width": 256, "expert_width": 512, "temperature": 0.02}

PRESETS: dict[str, dict[str, dict]] = {
    "tiny": {},
    "small": {
        "model": {"width": 128, "layers": 4, "heads": 4, "expert_width": 128, "experts": 8, "feature_width": 32},
        "train": {"batch_users": 128, "sampled_negatives": 8192},
    },
    "base": {
        "model": {**_BASE, "layers": 8, "experts": 16, "active_experts": 2, "decoder_layers": 4},
        "train": {"batch_users": 512, "sampled_negatives": 32768, "learning_rate": 0.004, "checkpoints": 40},
    },
    "full": {
        "model": {**_BASE, "layers": 24, "experts": 64, "active_experts": 3, "decoder_layers": 24},
        "train": {"batch_users": 512, "sampled_negatives": 65536, "learning_rate": 0.004, "checkpoints": 80},
    },
    # The organisers' baseline: SASRec with item and user features, dot products, binary loss with one negative, Adam at
    # .001, and the history's last event lost at inference. Differs: positions are a bias of the attention, not vectors
    # added to the input; the feed-forward part is SwiGLU; negatives are drawn for the batch, a row takes one of them.
    "official-baseline": {
        "model": {"block": "transformer", "width": 32, "layers": 1, "heads": 1, "feature_width": 32, "experts": 0,
                  "time_bias": False, "history_relu": False, "id_dropout": 0.0, "cosine": False, "temperature": 1.0,
                  "similarity_width": 0, "trend": False, "next_action": False, "time_inputs": []},
        "train": {"loss": "bce", "epochs": 3, "batch_users": 128, "sampled_negatives": 16384, "muon": False,
                  "learning_rate": 0.001, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"},
        "infer": {"mode": "retrieval", "filter_seen": False, "drop_last": True},
    },
    # OnePiece (arXiv 2512.07424) as its paper and release have it: in-batch negatives, LogQ on both sides, layer-wise
    # decoder, greedy re-assignment, the beam's survivors ranked by the cosine alone, cold items dropped. Differs:
    # targets
    # of the user's window are no negatives; the beam takes only ids that exist; the decoder starts from the last layer,
    # as
    # the paper has it; no exposure dates and popularity ranks as inputs, since in the release both look past the
    # moment;
    # logits are not clamped. Experts need Transformer blocks there: model.block=transformer
    # model.rotary=true model.layers=8 model.experts=64.
    "onepiece-paper": {
        "tokenizer": {"resolve": "greedy", "codes": 16384},
        "model": {**_BASE, "layers": 24, "experts": 0, "active_experts": 3, "decoder_layers": 24, "time_bias": False,
                  "id_dropout": 0.0, "similarity_width": 0, "trend": False, "code_trend": False,
                  "code_similarity": False, "time_inputs": ["gap", "week_hour", "moment"]},
        "train": {"epochs": 8, "warm_start_epochs": 8, "warm_start_rate": 1.0, "batch_users": 512,
                  "sampled_negatives": 0, "positive_logq": True, "semantic_weight": 1.0, "learning_rate": 0.004,
                  "weight_decay": 0.00001, "checkpoints": 8},
        "infer": {"mode": "auto", "beam": 20, "survivors": 384, "union": 0, "semantic_weight": 0.0, "cold_ids": False,
                  "filter_cold": True},
    },
}
