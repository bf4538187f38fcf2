"""Everything that wants a GPU, in one call: the tests that need one, then networks on MNIST.

    python benchmarks/gpu.py --data mnist

A run that was interrupted goes on where it stopped: teachers and students are kept. Widths 128 and
256 follow those of 64, each with five activations, on all 60,000 images.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
ACTIVATIONS = ("g", "tanh", "logistic", "softplus", "relu")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the IDX files of MNIST")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device; --device cpu runs the same on the CPU.")
    tests = [sys.executable, "-m", "pytest", "-n", "0", "-rs", "-k", "device or cuda or gpu"]
    subprocess.run(tests, cwd=HERE.parent, check=True)
    for width in args.widths:
        command = [sys.executable, HERE / "mnist.py", "--width", str(width), "--resume"]
        command += ["--device", args.device, "--verbose", "1", "--activation", *ACTIVATIONS]
        command += ["--working-memory", "0"]  # what the device has
        if args.data is not None:
            command += ["--data", args.data]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
