"""The best view that this computer has: the keyboard widget where anywidget is installed, else plain ipywidgets."""
import importlib.util
import os

from .chat import Chat
from .plain_view import PlainChat, PlainView
from .session import LabellingSession


def label_view(session: LabellingSession, goal: int | None = None):
    """A view of the session, for the last line of a cell; `goal` is how many to label by hand (default: all)."""
    if plain_only():
        return PlainView(session, goal)
    from .widget import LabelWidget
    return LabelWidget(session, goal)


def chat_view(chat: Chat):
    """A view of the chat, for the last line of a cell."""
    if plain_only():
        return PlainChat(chat)
    from .widget import ChatWidget
    return ChatWidget(chat)


def plain_only() -> bool:
    """Whether anywidget is missing, or RLHF_UI=basic asks to do without it."""
    return os.environ.get("RLHF_UI") == "basic" or importlib.util.find_spec("anywidget") is None
