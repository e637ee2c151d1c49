"""`moestro generate`: complete a prompt. Next: lm/language_model.py."""

import sys
from typing import Annotated

import typer

from moestro.cli import options


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.")],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Stop after this many tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Draw from the likeliest tokens that reach this share."),
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Repeats a sampled answer.")] = 0,
    experts: options.Experts = None,
    as_json: options.Json = False,
) -> None:
    """Complete a prompt.

    Example: [bold]moestro generate runs/demo "def fibonacci(n):" --experts 2.5[/bold]
    """
    from moestro.lm.language_model import load
    from moestro.text.stream import TextStream

    lm = load(model, is_packed=True)
    text = sys.stdin.read() if prompt == "-" else prompt
    wishes = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "experts": experts,
    }
    if as_json:
        done = lm.generate(text, **wishes)  # type: ignore[arg-type]
        options.print_json(
            {"text": done.text, "tokens": done.tokens, "mean_experts": done.mean_experts}
        )
        return
    stream = TextStream(lm.tokenizer)
    made = lm.stream(text, **wishes)  # type: ignore[arg-type]
    print(text, end="", flush=True)
    for item in made:
        print(stream.push(item.token), end="", flush=True)
    print(stream.finish())
