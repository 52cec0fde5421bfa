"""
Let tests import the package.

pytest names test modules after their folders and puts an empty module in the place of each folder. The folder and the
package have the same name here, so the empty module has to give way.
"""

import importlib
import sys

if getattr(sys.modules.get("simulator"), "__file__", None) is None:
    sys.modules.pop("simulator", None)
    importlib.import_module("simulator")
