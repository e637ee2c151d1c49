"""A chat template does what chat templates do, and no more, in bounded time."""

import time

import pytest

from moestro.errors import CheckpointError, DataError
from moestro.text import sandbox_limits
from moestro.text.sandbox import Program

GROW = (
    "{%% set ns = namespace(a=%s, b=%s) %%}{%% for i in range(60) %%}{%% set ns.a = %s %%}"
    "{%% set ns.b = %s %%}{%% endfor %%}{{ ns.a == ns.b }}"
)


def grow(start: str, step: str) -> str:
    return GROW % (start, start, step, step.replace("ns.a", "ns.b"))


EXPECTED = {
    "{{ 'a\u00e9<b>' | tojson }} {{ {'a': [1, none]} | tojson }}": '"a\u00e9<b>" {"a": [1, null]}',
    "{{ {'a': 1} | tojson(indent=2) }}": '{\n  "a": 1\n}',
    "{% for i in 'abc' %}{% if i == 'b' %}{% continue %}{% endif %}{{ i }}{% endfor %}": "ac",
    "{% for i in 'ab' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}": (
        "1/2False 2/2True "
    ),
    "{% generation %}{{ 1 + 1 }}{% endgeneration %}": "2",
    "{% set a, b = 1, 2 %}{{ b }}{% for k, v in {'x': a}.items() %}{{ k }}{{ v }}{% endfor %}": (
        "2x1"
    ),
    "{{ ['b', 'a'] | sort | join(', ') }}{{ [{'n': 1}, {'n': 2}] | join('-', 'n') }}": "a, b1-2",
    "{{ 'a-b'.split('-')[-1] }}{{ ' x '.strip() }}{{ 'xyx' | replace('x', 'z') }}": "bxzyz",
    "{{ '%s-%d' % ('a', 3) }} {{ '%s' | format('b') }} {{ '{}'.format('c') }}": "a-3 b c",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) ~ f('b') }}": "[1][b]",
    "{{ dict(a=1)['a'] }}{{ ', '.join(['a', 'b'] | map('upper')) }}": "1A, B",
    "  {% if true %}\nx\n  {% endif %}\ny": "x\ny",
    "{{ missing }}{{ strftime_now('%Y') | length }}": "4",
}


@pytest.mark.parametrize("source", EXPECTED)
def test_templates_find_what_they_expect(source: str) -> None:
    assert Program(source).run({}) == EXPECTED[source]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__x = 1 %}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_pythons_internals_are_out_of_reach(source: str) -> None:
    with pytest.raises(CheckpointError, match="may not run"):
        Program(source).run({"messages": []})


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'secret.txt' %}",
        "{% import 'secret.txt' as x %}",
        "{% from 'secret.txt' import x %}",
        "{% extends 'secret.txt' %}",
    ],
)
def test_files_are_out_of_reach(source: str) -> None:
    with pytest.raises(CheckpointError, match="it reads another file in line 1"):
        Program(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | list | string | length }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'y' * 100000 }}{% endfor %}{% endset %}",
        "{% set x %}{% for i in range(99999) %}" + "y" * 50_000 + "{% endfor %}{% endset %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 9 }}{{ 2 ** 99999 }}",
        "{{ 'x'.center(10 ** 9) }}",
        "{{ '1'.zfill(10 ** 9) }}",
        "{{ (5).to_bytes(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{{ strftime_now('%999999999d') }}",
        grow("3", "ns.a * ns.a"),
        grow("'aa'", "ns.a + ns.a"),
        grow("'aa'", "ns.a ~ ns.a"),
        grow("'aa'", "ns.a.replace('a', ns.a)"),
        grow("'aa'", "ns.a | replace('a', ns.a)"),
        grow("'aa'", "ns.a.join([ns.a, ns.a] | map('trim'))"),
        grow("'aa'", "[ns.a, ns.a] | map('trim') | join(ns.a)"),
        grow("[1]", "[ns.a, ns.a]"),
        grow("(1,)", "(ns.a, ns.a)"),
        grow("{}", "{'a': ns.a, 'b': ns.a}"),
        grow("{}", "dict(a=ns.a, b=ns.a)"),
    ],
)
def test_a_template_without_bounds_ends_with_an_error(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="may not run"):
        Program(source).run({})
    assert time.thread_time() - start < 2


def test_a_pause_of_the_process_itself_does_not_end_a_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.1, 50.0, 50.2, 50.3])
    monkeypatch.setattr(sandbox_limits.time, "thread_time", lambda: next(clock))
    meter = sandbox_limits.Meter()
    for _ in range(4):
        meter.count()
    assert next(clock, None) is None


def test_a_template_that_takes_its_time_twice_ends_however_few_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 50.0, 50.5, 99.0])
    monkeypatch.setattr(sandbox_limits.time, "thread_time", lambda: next(clock))
    meter = sandbox_limits.Meter()
    meter.count()
    meter.count()
    with pytest.raises(sandbox_limits.LimitError, match="more than 1 s"):
        meter.count()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for x in %}", "broken .* in line 1"),
        ("a\n{{ 'x' | center(9) }}", "No filter named 'center'. in line 2"),
        ("{{ " + "(" * 5000, "too deeply nested"),
    ],
)
def test_a_broken_template_is_an_error_at_once(source: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        Program(source)


def test_a_templates_refusal_is_passed_on() -> None:
    source = "{% if not messages %}{{ raise_exception('roles must alternate') }}{% endif %}"
    with pytest.raises(DataError, match=r"refuses these messages \(roles must alternate\)"):
        Program(source).run({"messages": []})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ x.y.z }}", "'x' is undefined"),
        ("{{ none + 'a' }}", "unsupported operand"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{{ range(10 ** 9) }}", "Range too big"),
    ],
)
def test_a_template_that_fails_says_where(source: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"fails on these messages .*{reason}"):
        Program(source).run({})


def test_two_renderings_do_not_share_their_bounds() -> None:
    program = Program("{{ x }}")
    long = "x" * 7_000_000
    assert [len(program.run({"x": long})) for _ in range(6)] == [7_000_000] * 6
    with pytest.raises(CheckpointError, match="it does more than"):
        Program("{% for i in range(6) %}{% set y %}{{ x }}{% endset %}{% endfor %}").run(
            {"x": long}
        )
