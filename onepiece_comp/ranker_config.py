"""The settings of the ranker of a cascade's survivors, the section `ranker` of `config.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The ranker of a cascade's survivors; see `target_ranker.py` and `ranker_training.py`."""

    use: bool = False  # `run` trains one after the joint stage and infers with it
    kind: str = "attention"  # attention = HSTU blocks with M-FALCON's mask | din = a weighted sum over events
    width: int = 64  # D of the ranker
    heads: int = 2  # of its attention
    layers: int = 1  # of its attention
    din_hidden: int = 8  # hidden units of DIN's weights
    dropout: float = 0.1  # in the attention's branches and in the head
    depth: int = 200  # survivors that are ranked anew, the first stage's best; the others keep their order below
    examples: int = 4000  # clicks and conversions of training users that it learns from, with half as many exposures
    late: int = 6  # they are drawn from each user's last so many clicks, and exposures
    add_missed: bool = False  # learn from lists that the target did not survive too, the target added
    epochs: float = 3.0  # passes over the lists
    batch_lists: int = 16  # lists a step
    learning_rate: float = 0.001  # peak, AdamW; a cosine to zero
    weight_decay: float = 0.01  # AdamW
    action_weights: tuple[float, ...] = (0.0, 1.0, 1.0, 1.0)  # of lists with an exposure, click, conversion, unknown as target
    binary_weight: float = 0.1  # of the losses of the click and conversion heads
    checkpoints: int = 3  # how often it is validated; the best is taken
    keep: str = "better"  # better = applied only if ahead of the first stage by a standard error on validation users | always
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads; 0 = the cores this process may use
    seed: int = 0  # weights, examples, order, dropout
