"""One GGUF format to another by llama.cpp itself: python quantize_gguf.py IN OUT Q4_0."""

import sys

import llama_cpp

TYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def main() -> None:
    """Quantize one file."""
    source, dest, name = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[name], 2
    status = llama_cpp.llama_model_quantize(source.encode(), dest.encode(), params)
    if status:
        sys.exit(f"llama_model_quantize returned {status}")


if __name__ == "__main__":
    main()
