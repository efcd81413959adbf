"""Version of the package; equals that of the library. SPDX-License-Identifier: Apache-2.0"""

__version__ = "1.0.0"
