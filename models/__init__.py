"""Networks, their training, and the engines that run them; tensors never leave this package."""

import sys

# OpenVINO imports this package to tell its makers that it was imported. With None in its place it is not found, and
# nothing is sent: no command looks a name up that was not in a URL its user gave.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
