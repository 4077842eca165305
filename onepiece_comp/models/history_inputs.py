"""What enters the encoder at each position: the item, the user, actions and time, fused to one vector.

Stands between the towers and the encoder's layers. Position 0 is the user token. Source: OnePiece (arXiv 2512.07424),
section on features; the action to predict joins by addition as there, by FiLM (Perez et al. 2018, arXiv 1709.07871) or
by a gate. Legend: B users, T positions, D width.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.config import ModelConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import Schema
from onepiece_comp.models.histories import History
from onepiece_comp.models.hstu import TIME_BUCKETS, gap_bucket
from onepiece_comp.models.item_tower import UserTower
from onepiece_comp.models.popularity import CONDITIONS

FUSIONS = ("add", "film", "gate")
TIME_INPUTS = ("week_hour", "gap", "calendar", "session", "moment")
_HOUR, _DAY, _WEEK = 3600, 86400, 7 * 86400
_MOMENTS, _MOMENT_DROPOUT = 8192, 0.5  # as in OnePiece's release
_SESSION_SECONDS, _PLACES = 1800, 32  # a longer break begins a new session; places in it that are told apart


class HistoryInputs(nn.Module):
    """The encoder's input; InputError for an unknown fusion or time input."""

    def __init__(self, config: ModelConfig, schema: Schema):
        super().__init__()
        _check("model.action_fusion", (config.action_fusion,), FUSIONS)
        self.history_relu = config.history_relu
        self.user_tower = UserTower(config, schema)
        self.action_table = nn.Embedding(CONDITIONS, config.width)
        self.condition = ActionFusion(config.width, config.action_fusion) if config.next_action else None
        self.time = TimeInputs(config.width, config.time_inputs)

    def forward(self, history: History, item_ND: torch.Tensor) -> torch.Tensor:
        """Vectors [B, T, D] of histories whose items are rows of `item_ND`; zero in the padding."""
        length = history.item_BT.shape[1]
        valid_BT = torch.arange(length, device=item_ND.device)[None] < history.length_B[:, None]
        item_BTD = item_ND[history.item_BT]
        x_BTD = (F.relu(item_BTD) if self.history_relu else item_BTD) + self.action_table(history.action_BT)
        user_BD = self.user_tower(history.user_token, history.user_token_start_B)
        x_BTD[:, 0] = user_BD
        x_BTD = self.time(x_BTD + user_BD[:, None], history.time_BT)
        if self.condition is not None:
            x_BTD = self.condition(x_BTD, history.next_action_BT)
        return x_BTD * valid_BT[:, :, None]


class ActionFusion(nn.Module):
    """x and the action that the position is to predict: x + e, x scaled and shifted by it, or x + gate(x, e) * e."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind = kind
        self.action_table = nn.Embedding(CONDITIONS, 2 * width if kind == "film" else width)
        self.gate = nn.Linear(2 * width, width) if kind == "gate" else None

    def forward(self, x_BTD: torch.Tensor, action_BT: torch.Tensor) -> torch.Tensor:
        told_BTD = self.action_table(action_BT)
        if self.kind == "film":
            scale_BTD, shift_BTD = told_BTD.chunk(2, dim=-1)
            return x_BTD * (1 + scale_BTD) + shift_BTD
        if self.kind == "gate":
            told_BTD = told_BTD * torch.sigmoid(self.gate(torch.cat([x_BTD, told_BTD], dim=-1)))
        return x_BTD + told_BTD


class TimeInputs(nn.Module):
    """Adds what is known of an event's time (seconds, UTC; 0 = none): see `TIME_INPUTS`.

    `week_hour` has an embedding for each hour of the week, `gap` one for each bucket of the time since the event
    before, `calendar` sines of day, week and year, `session` an embedding of the event's place in its session, `moment`
    one for each of 8,192 stretches of the log with equally many events (`fit`), hidden from half of a training step's
    events.
    """

    def __init__(self, width: int, kinds: tuple[str, ...]):
        super().__init__()
        _check("model.time_inputs", kinds, TIME_INPUTS)
        table = lambda kind, rows: nn.Embedding(rows, width) if kind in kinds else None
        self.week_hour_table = table("week_hour", _WEEK // _HOUR + 1)
        self.gap_table = table("gap", TIME_BUCKETS)
        self.session_table = table("session", _PLACES)
        self.moment_table = table("moment", _MOMENTS + 1)  # row 0: hidden
        if "moment" in kinds:
            self.register_buffer("moment_edges", torch.zeros(_MOMENTS - 1, dtype=torch.int64))
        self.calendar = nn.Linear(2 * len(_harmonics()), width, bias=False) if "calendar" in kinds else None

    def fit(self, time_seconds: np.ndarray) -> None:
        """Learn from a log's event times where its stretches end."""
        if self.moment_table is not None and len(time_seconds):
            share = np.linspace(0, 1, _MOMENTS + 1)[1:-1]
            self.moment_edges.copy_(torch.from_numpy(np.quantile(time_seconds, share, method="lower").astype(np.int64)))

    def forward(self, x_BTD: torch.Tensor, time_BT: torch.Tensor) -> torch.Tensor:
        known_BT = time_BT > 0
        if self.week_hour_table is not None:
            hour_BT = torch.div(time_BT, _HOUR, rounding_mode="floor") % (_WEEK // _HOUR)
            x_BTD = x_BTD + self.week_hour_table(torch.where(known_BT, hour_BT, _WEEK // _HOUR))
        gap_BT = torch.diff(time_BT, dim=1, prepend=time_BT[:, :1])
        if self.gap_table is not None:
            x_BTD = x_BTD + self.gap_table(gap_bucket(gap_BT))
        if self.session_table is not None:
            x_BTD = x_BTD + self.session_table(place_in_session(gap_BT))
        if self.moment_table is not None:
            moment_BT = 1 + torch.bucketize(time_BT, self.moment_edges, right=True)
            if self.training:
                moment_BT = moment_BT * (torch.rand(time_BT.shape, device=time_BT.device) >= _MOMENT_DROPOUT)
            x_BTD = x_BTD + self.moment_table(moment_BT)
        if self.calendar is not None:
            x_BTD = x_BTD + self.calendar(calendar_waves(time_BT).to(x_BTD.dtype) * known_BT[:, :, None])
        return x_BTD


def _harmonics() -> list[float]:
    """Periods in seconds: a day and a week with their first overtones, a year."""
    return [_DAY, _DAY / 2, _DAY / 3, _WEEK, _WEEK / 2, _WEEK / 3, 365.2425 * _DAY]


def calendar_waves(time_BT: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of the time's phase in each period, [B, T, 2 * periods];
    float64 until then, for seconds are many.
    """
    period_P = torch.tensor(_harmonics(), dtype=torch.float64, device=time_BT.device)
    phase_BTP = 2 * math.pi * (time_BT[:, :, None].double() / period_P).frac()
    return torch.cat([phase_BTP.sin(), phase_BTP.cos()], dim=-1).float()


def place_in_session(gap_BT: torch.Tensor) -> torch.Tensor:
    """How many events of the same session stand before each, at most 31; [0, 5, 9, 4000, 2] gives [0, 1, 2, 0, 1]."""
    step_T = torch.arange(gap_BT.shape[1], device=gap_BT.device)
    begins_BT = torch.where((gap_BT > _SESSION_SECONDS) | (step_T == 0), step_T, 0)
    return (step_T - begins_BT.cummax(dim=1).values).clamp_max(_PLACES - 1)


def _check(place: str, named: tuple[str, ...], valid: tuple[str, ...]) -> None:
    for name in named:
        if name not in valid:
            raise InputError(place, found=repr(name), expected=f"of {', '.join(valid)}", do="choose from these")
