"""Load a model and see which experts two kinds of text go to.

    python examples/watch_the_experts.py runs/demo

Needs a run folder, like the one that `make demo` leaves.
"""

import sys

import moestro

CODE = "for index, value in enumerate(values):\n    total += value\n"
PROSE = "The statement is executed once for each item, and then the loop ends.\n"


def main() -> None:
    """Score both texts at two budgets and print each layer's busiest experts."""
    lm = moestro.load(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    for name, text in (("code", CODE), ("prose", PROSE)):
        for experts in (lm.config.fewest_experts, lm.config.num_experts_per_tok):
            result = lm.score([text], experts=experts)
            busiest = [
                [int(expert) for expert in row.argsort()[::-1][:3]] for row in result.load_LE
            ]
            print(
                f"{name} at {experts} experts: {result.bits_per_byte:.2f} bits per byte, {busiest}"
            )
    print(lm.generate("def main(", max_tokens=32, experts=lm.config.fewest_experts).text)


if __name__ == "__main__":
    main()
