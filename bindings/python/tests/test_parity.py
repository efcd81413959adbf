"""The checks of parity.py, under pytest. SPDX-License-Identifier: Apache-2.0"""
from parity import *  # noqa: F401,F403
