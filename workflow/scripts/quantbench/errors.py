"""The one exception that means "the user can mend this": shown as one message, without a traceback."""


class UserError(Exception):
    """What is wrong, where (key or file), and what would be valid, in one message."""
