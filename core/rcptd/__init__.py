"""The verification core of rcptd: what to ask about a recipient, how to find out, and what to say."""

__version__ = "0.1.0"
