"""Reads names such as ``best_of(4)`` or ``average_of(0.5*best_of(1),0.5*best_of(8))`` without evaluating anything."""

import ast


def parse(text, what="name"):
    """Parses ``text`` into ``(head, args)``.

    An argument is a number, a nested ``(head, args)`` or ``(weight, (head, args))``.

    Args:
      text: the name; ``standard`` and ``standard()`` mean the same.
      what: the noun used in error messages.

    Raises:
      ValueError: ``text`` is not a string of that form.

    Examples:
      >>> parse("best_of(4)")
      ('best_of', [4])
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be a text such as 'best_of(4)' or 'exponential(10)', got {text!r}")
    try:
        head, args = _walk(ast.parse(text.strip(), mode="eval").body)
        if not isinstance(head, str):
            raise SyntaxError(text)
    except (SyntaxError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{what} {text!r} is not of the form word or word(number, ...)") from None
    return head, args


def _walk(node):
    if isinstance(node, ast.Name):
        return node.id, []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return node.func.id, [_argument(arg) for arg in node.args]
    raise SyntaxError("neither a word nor a call")


def _argument(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _number(node.left), _walk(node.right)
    try:
        return _number(node)
    except SyntaxError:
        return _walk(node)


def _number(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise SyntaxError("not a number")


def build(choices, text, what, also=()):
    """Calls ``choices[head](*numbers)`` for a name without nested parts.

    Args:
      choices: functions of numbers by name.
      text: the name.
      what: the noun used in error messages.
      also: further forms that are legal where ``text`` comes from, made by others; named in error messages only.

    Raises:
      ValueError: unknown head (the message lists the legal ones), nested parts, or a wrong number of arguments.
    """
    head, args = parse(text, what)
    return build_parsed(choices, head, args, text, what, also)


def build_parsed(choices, head, args, text, what, also=()):
    """The second half of :func:`build`, for callers that have parsed already; the same ``ValueError``s."""
    if head not in choices:
        legal = [*(_signature(name, function) for name, function in choices.items()), *also]
        raise ValueError(f"unknown {what} {text!r}; legal are {', '.join(legal)}")
    signature = _signature(head, choices[head])
    wanted = choices[head].__code__.co_argcount
    if len(args) != wanted or not all(isinstance(arg, (int, float)) for arg in args):
        raise ValueError(f"{what} {text!r} does not match {signature}, which takes {wanted} number(s)")
    return choices[head](*args)


def _signature(name, function):
    """What may be written for a choice, e.g. ``exponential(t)``."""
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return f"{name}({', '.join(arguments)})" if arguments else name
