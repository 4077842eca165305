"""OnePiece for the Tencent Advertising Algorithm Challenge 2025: log in, top-10 submission out."""

__version__ = "0.1.2"
