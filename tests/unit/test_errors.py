"""The exception tree: one root, and each class says who must act."""

from moestro import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_error_is_one_that_the_command_line_turns_into_a_line() -> None:
    assert len(KINDS) > 1
    assert all(issubclass(kind, errors.MoestroError) for kind in KINDS)


def test_every_error_says_who_must_act() -> None:
    assert all(kind.__doc__ and kind.__doc__.strip() for kind in KINDS)


def test_the_message_is_what_the_user_reads() -> None:
    assert str(errors.ConfigError("steps is 0: it must be 1 or more")).startswith("steps is 0")
