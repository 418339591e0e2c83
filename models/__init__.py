"""Networks, their training, and the engines that run them; tensors never leave this package."""

import sys

# OpenVINO imports the package openvino_telemetry to report its use to its makers. With None in its place the package
# is not found and nothing is sent: commands contact only hosts of URLs that the user gave.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
