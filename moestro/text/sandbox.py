"""Runs a checkpoint's chat template, which is a stranger's program, with bounds on all it does.

No files, no Python internals, a fixed amount of processor time, and no value that outgrows
`MAX_SIZE`. Knows jinja2 syntax, not messages or tokens. Next: sandbox_filters.py,
sandbox_limits.py.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from moestro.errors import CheckpointError, DataError
from moestro.text.sandbox_filters import (
    REFUSED_METHODS,
    TemplateRefusal,
    call_method,
    list_filters,
    list_globals,
)
from moestro.text.sandbox_limits import LimitError, Meter, check_operands, check_size, check_value

T = TypeVar("T")
CallableT = TypeVar("CallableT", nodes.Macro, nodes.CallBlock)

# No template's own code can say these names: they are not identifiers.
_METER = "~meter"
_COUNT = "~count"
_EACH = "~each"
_CONCAT = "~concat"
_CHECK = "~check"
_FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Program:
    """One compiled template: `run` renders it, `tree` is its syntax."""

    def __init__(self, source: str) -> None:
        """Parse and compile; a template that is broken or opens files raises CheckpointError."""
        environment = _build_environment()
        try:
            self.tree = environment.parse(source)
            code = environment.compile(_Bounds().visit(environment.parse(source)))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template is broken ({error.message} in line {error.lineno}): replace it"
            ) from error
        except (RecursionError, SyntaxError, MemoryError) as error:
            raise CheckpointError(
                f"the chat template is too deeply nested ({type(error).__name__}): replace it"
            ) from error
        made = environment.make_globals(None)
        self._template = jinja2.Template.from_code(environment, code, made)

    def run(self, variables: Mapping[str, Any]) -> str:
        """Render; a refusal by the template is a DataError, breaking its bounds CheckpointError."""
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate({**variables, _METER: Meter()}):
                size += len(part)
                check_size(size)
                parts.append(part)
        except TemplateRefusal as error:
            raise DataError(
                f"the chat template refuses these messages ({error}): change them"
            ) from error
        except (LimitError, SecurityError, RecursionError, MemoryError) as error:
            raise CheckpointError(
                f"the chat template may not run ({error or type(error).__name__}): replace it"
            ) from error
        except (jinja2.TemplateError, *_FAILURES) as error:
            raise DataError(
                f"the chat template fails on these messages ({error}): change them"
            ) from error
        return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """Checks sizes before an operation makes something large."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401 - any value
        if attr in REFUSED_METHODS and isinstance(obj, str | bytes | int | float):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - any value
        context[_METER].count()
        check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    # Names that no keyword of a template's call can take, as in the sandbox itself.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any value
        __context[_METER].count()
        for value in (*args, *kwargs.values()):
            check_value(value)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            args = call_method(owner, __obj.__name__, args)
        return super().call(__context, __obj, *args, **kwargs)


class _Bounds(NodeTransformer):
    """Makes every loop and macro count its work, and joined text check its size."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _EACH)
        node.body.insert(0, _count(node.body, node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._count_calls(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._count_calls(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, _CHECK)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, _CHECK)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, _CHECK) if node.ctx == "load" else node

    def visit_Include(self, node: nodes.Stmt) -> nodes.Stmt:
        raise jinja2.TemplateSyntaxError("it reads another file", node.lineno)

    visit_Import = visit_FromImport = visit_Extends = visit_Include

    def _count_calls(self, node: CallableT) -> CallableT:
        self.generic_visit(node)
        node.body.insert(0, _count(node.body, node.lineno))
        return node


def _count(body: list[nodes.Node], lineno: int) -> nodes.Output:
    # Text of the template's own, repeated by a loop, is work too.
    literals = (data for node in body for data in node.find_all(nodes.TemplateData))
    size = sum(len(data.data) for data in literals)
    return nodes.Output([_filter(nodes.Const(size, lineno=lineno), _COUNT)], lineno=lineno)


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """The block that marks what training should learn; a prompt shows it as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads this attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _build_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        # Constants are folded at compile time otherwise, before anything counts.
        optimized=False,
        finalize=_finalize,
    )
    environment.filters = list_filters()
    environment.filters |= {_COUNT: _count_filter, _EACH: _each_filter}
    environment.filters |= {_CONCAT: _concat_filter, _CHECK: _check_filter}
    environment.globals = list_globals() | {"range": environment.globals["range"]}
    return environment


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:  # noqa: ANN401 - any value
    context[_METER].count(check_value(value))
    return value


@jinja2.pass_context
def _count_filter(context: Context, size: int) -> str:
    context[_METER].count(size)
    return ""


@jinja2.pass_context
def _each_filter(context: Context, items: Iterable[Any]) -> list[Any]:
    found = list(items)
    context[_METER].count(len(found))
    return found


def _check_filter(literal: T) -> T:
    # Lists that hold one list twice, which holds one twice, grow faster than their source.
    check_value(literal)
    return literal


@jinja2.pass_context
def _concat_filter(context: Context, items: list[Any]) -> str:
    context[_METER].count()
    check_value(items)
    return "".join(map(str, items))
